"""Read and validate single columns of a table, with errors that name the row.

Rows are numbered from 1; a header is not a row.
"""

from typing import Any

from datasets import Dataset

from balora.errors import BALoraError


def row_error(source: str, row: int, column: str, problem: str) -> BALoraError:
    """Build the error for one value of a table.

    Args:
        source: File or Hub name of the table.
        row: Row number, from 1.
        column: The column, called field in the message.
        problem: What is wrong with it.
    """
    return BALoraError(f"{source}, row {row}, field {column!r}: {problem}")


def column_values(dataset: Dataset, column: str, *, source: str) -> list[Any]:
    """Return all values of a column.

    Raises:
        BALoraError: If the column does not exist, or there are no rows.
    """
    if len(dataset) == 0:
        raise BALoraError(f"{source}: no rows")
    if column not in dataset.column_names:
        raise BALoraError(f"{source}: no column {column!r}; it has {column_list(dataset)}")
    return dataset[column][:]


def column_list(dataset: Dataset) -> str:
    """Return the quoted column names of a table, for an error message."""
    return quoted(dataset.column_names)


def quoted(names: list[str], limit: int = 20) -> str:
    """Return quoted column names for an error message, at most the first `limit`."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shortened, names[:limit])) + more or "no columns"


def check_strings(values: list[Any], *, source: str, column: str, blank: bool = False, first_row: int = 1) -> None:
    """Require that every value of a column is a string that is not blank.

    Args:
        values: The column's values.
        source: File or Hub name of the table, for errors.
        column: The column's name, for errors.
        blank: Whether blank strings are allowed.
        first_row: Row number of the first value.

    Raises:
        BALoraError: Naming the first row with another value.
    """
    for row, value in enumerate(values, start=first_row):
        if value is None:
            raise row_error(source, row, column, "is missing")
        if not isinstance(value, str):
            raise row_error(source, row, column, f"expected text, found {shortened(value)}")
        if not blank and not value.strip():
            raise row_error(source, row, column, "is empty")


def is_blank(value: Any) -> bool:
    """Return whether a text is missing or blank."""
    return value is None or (isinstance(value, str) and not value.strip())


def shortened(value: Any, limit: int = 60) -> str:
    """Return the `repr` of a value, cut to fit in an error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
