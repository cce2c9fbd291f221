"""Text columns of a benchmark's file, validated."""

from collections.abc import Collection, Sequence
from pathlib import Path

from balora.data import load_table
from balora.data.columns import check_strings, column_values, row_error, shortened


def read_columns(path: str | Path, columns: Sequence[str], *, blank: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read columns of a local `.csv` or `.tsv` file, row by row.

    Args:
        path: The file.
        columns: Their names.
        blank: Those of them in which a value may be blank.

    Raises:
        BALoraError: If a column is missing or a value is blank, or as in `load_table`.
    """
    table = load_table(str(path))
    values = {column: column_values(table, column, source=str(path)) for column in columns}
    for column in columns:
        check_strings(values[column], source=str(path), column=column, blank=column in blank)
    return [dict(zip(columns, row, strict=True)) for row in zip(*values.values(), strict=True)]


def check_known(path: str | Path, rows: Sequence[dict[str, str]], column: str, known: Collection[str]) -> None:
    """Require that a column's values are among the known ones.

    Raises:
        BALoraError: Naming the first row with another value.
    """
    for number, row in enumerate(rows, start=1):
        if row[column] not in known:
            problem = f"is {shortened(row[column])}; it must be one of {', '.join(known)}"
            raise row_error(str(path), number, column, problem)
