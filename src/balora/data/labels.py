"""What the labels of a classification set mean: class ids and their names, or the numbers of a regression."""

import math
import re
from typing import Any

from balora.data.columns import quoted, row_error, shortened
from balora.errors import BALoraError

INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)


def read_labels(
    values: list[Any], *, source: str, column: str, label_names: list[str] | None, num_labels: int | None
) -> tuple[list[int] | list[float], list[str]]:
    """Class ids and the names they stand for, or numbers and no names.

    Args:
        values: One label per row.
        source: File or Hub name they came from, for errors.
        column: Their column, for errors.
        label_names: Names by class id; an empty list for regression; `None` to read them from the values.
        num_labels: Number of classes, 1 for regression, `None` if not said.

    Raises:
        BALoraError: See `balora.data.to_classification_rows`.
    """
    for row, value in enumerate(values, start=1):
        if value is None or value == "":
            raise row_error(source, row, column, "is missing")
        if not isinstance(value, (str, int, float)):
            raise row_error(source, row, column, f"expected a class or a number, found {shortened(value)}")
    if label_names == [] or (label_names is None and (num_labels == 1 or _are_real_numbers(values))):
        return _numbers(values, source, column), []
    if label_names is None:
        label_names = _names_of(values, source, column, num_labels)
    if num_labels is not None and len(label_names) != num_labels:
        raise BALoraError(
            f"{source}: has {len(label_names)} labels ({quoted(label_names)}); num_labels is {num_labels}"
        )
    return _class_ids(values, source, column, label_names), label_names


def _is_integer(value: Any) -> bool:
    # JSON's true and false are names of classes, though to Python they are integers.
    return type(value) is int or (isinstance(value, str) and INTEGER.fullmatch(value) is not None)


def _are_real_numbers(values: list[Any]) -> bool:
    return all(_is_number(value) for value in values) and not all(_is_integer(value) for value in values)


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return not isinstance(value, bool)


def _numbers(values: list[Any], source: str, column: str) -> list[float]:
    for row, value in enumerate(values, start=1):
        if not _is_number(value) or not math.isfinite(float(value)):
            raise row_error(source, row, column, f"regression needs a finite number, found {shortened(value)}")
    return [float(value) for value in values]


def _names_of(values: list[Any], source: str, column: str, num_labels: int | None) -> list[str]:
    if all(_is_integer(value) for value in values):
        present = {int(value) for value in values}
        count = num_labels or max(present) + 1
        for row, value in enumerate(values, start=1):
            if not 0 <= int(value) < count:
                raise row_error(source, row, column, _out_of_range(value, num_labels))
        # A number that no row has is more often labels counted from 1, or a mistyped one, than a class never seen.
        absent = next((i for i in range(count) if i not in present), None)
        if num_labels is None and absent is not None:
            raise BALoraError(
                f"{source}: the labels in {column!r} go up to {count - 1} but none is {absent}; class ids count from "
                "0 without gaps, so give label_names, or num_labels if that class is only absent here"
            )
        names = [str(i) for i in range(count)]
    else:
        names = sorted({str(value) for value in values})
    if len(names) == 1:
        raise BALoraError(
            f"{source}: every row has the label {shortened(names[0])} in {column!r}; there is nothing to tell apart"
        )
    return names


def _class_ids(values: list[Any], source: str, column: str, label_names: list[str]) -> list[int]:
    by_name = {name: i for i, name in enumerate(label_names)}
    if not any(_is_integer(name) for name in label_names):
        # Where the names are words, an integer is the id of one.
        by_name |= {str(i): i for i in range(len(label_names))}
    for row, value in enumerate(values, start=1):
        if str(value) not in by_name:
            if _is_integer(value):
                raise row_error(
                    source, row, column, f"{_out_of_range(value, len(label_names))} ({quoted(label_names)})"
                )
            raise row_error(source, row, column, f"{shortened(value)} is not one of the labels {quoted(label_names)}")
    return [by_name[str(value)] for value in values]


def _out_of_range(value: Any, num_labels: int | None) -> str:
    allowed = "from 0" if num_labels is None else f"0 to {num_labels - 1}"
    return f"label {value} is out of range; class ids are {allowed}"
