"""Reading single columns of a table, and how an error names a place in it.

Rows are numbered from 1, as people count them; a header is not a row.
"""

from typing import Any

from datasets import Dataset

from balora.errors import BALoraError


def row_error(source: str, row: int, column: str, problem: str) -> BALoraError:
    """The error for one value.

    Args:
        source: File or Hub name the table came from.
        row: From 1.
        column: The column, named field in the message.
        problem: What is wrong with it.
    """
    return BALoraError(f"{source}, row {row}, field {column!r}: {problem}")


def column_values(dataset: Dataset, column: str, *, source: str) -> list[Any]:
    """All values of a column, of which there is at least one.

    Raises:
        BALoraError: If there is no such column, or there are no rows.
    """
    if len(dataset) == 0:
        raise BALoraError(f"{source}: no rows")
    if column not in dataset.column_names:
        raise BALoraError(f"{source}: no column {column!r}; it has {column_list(dataset)}")
    return dataset[column][:]


def column_list(dataset: Dataset) -> str:
    """The columns of a table, quoted, for a message."""
    return quoted(dataset.column_names)


def quoted(names: list[str], limit: int = 20) -> str:
    """Names of columns, quoted, for a message; of many the first."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(shortened, names[:limit])) + more or "no columns"


def check_strings(values: list[Any], *, source: str, column: str, blank: bool = False, first_row: int = 1) -> None:
    """Require that every value is a string, and not a blank one unless `blank` allows it.

    Args:
        values: Of one column.
        source: File or Hub name the table came from, for errors.
        column: The column's name, for errors.
        blank: Whether a value may be blank.
        first_row: Number of the first value's row.

    Raises:
        BALoraError: Naming the first row where it is not so.
    """
    for row, value in enumerate(values, start=first_row):
        if value is None:
            raise row_error(source, row, column, "is missing")
        if not isinstance(value, str):
            raise row_error(source, row, column, f"expected text, found {shortened(value)}")
        if not blank and not value.strip():
            raise row_error(source, row, column, "is empty")


def is_blank(value: Any) -> bool:
    """Whether a text is missing or blank."""
    return value is None or (isinstance(value, str) and not value.strip())


def shortened(value: Any, limit: int = 60) -> str:
    """A value as Python writes it, cut to fit in a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
