"""Rows for sequence classification and regression: text, an optional second text, and a label; and their tokens."""

import math
import re
import warnings
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from balora.data.columns import check_strings, column_list, column_values, quoted, row_error, shortened
from balora.data.truncation import report_cut
from balora.errors import BALoraError
from balora.utils.distributed import is_main_process
from balora.utils.lengths import check_lengths, check_max_length

INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
#: A class id as text, perhaps with a fraction of zero.
WHOLE = re.compile(r"^(0|[1-9]\d*)(?:\.0+)?$", re.ASCII)
DECIMAL_COMMA = re.compile(r"-?\d+(,\d+)?", re.ASCII)
#: Names of text columns in GLUE, similar tasks and Transformers: pairs, then single texts.
TEXT_COLUMNS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("text",),
    ("sentence",),
)


def to_classification_rows(
    dataset: Dataset,
    *,
    source: str,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str = "label",
    label_names: list[str] | None = None,
    num_labels: int | None = None,
) -> tuple[Dataset, list[str]]:
    """Validate a table and reduce it to `text`, `text_pair` if there is a second text, and `label`.

    Labels are integers, strings of digits, names, or real numbers. Integers from 0 are class ids, also if a CSV file
    has them as `1.0`; names get ids in sorted order; other real numbers (at least one written with a fraction or
    exponent) make it a regression, which a warning reports. Pass the
    `label_names` returned for the training set when reading the evaluation set, so that ids mean the same in both.

    Args:
        dataset: The table.
        source: File or Hub name of the table, for errors.
        text_column: Column that becomes `text`. By default, text columns are recognised by `TEXT_COLUMNS`.
        text_pair_column: Column that becomes `text_pair`; requires `text_column`.
        label_column: Column that becomes `label`.
        label_names: Names by class id; an empty list for regression. Default: those of the table's `ClassLabel` if it
            has one, otherwise read from the labels.
        num_labels: Number of classes, 1 for regression. Needed if a class has no row.

    Returns:
        The same rows in the same order with `label` an id (int64) or a number (float64); and the names by class id,
        an empty list for regression.

    Raises:
        BALoraError: If a column is missing or ambiguous, a text is missing, or a label is not one of the names.
    """
    columns = _choose_text_columns(dataset, text_column, text_pair_column, source)
    rows = {key: column_values(dataset, column, source=source) for key, column in columns.items()}
    for key, column in columns.items():
        check_strings(rows[key], source=source, column=column, blank=True)
    for number, texts in enumerate(zip(*rows.values(), strict=True), start=1):
        if not any(text.strip() for text in texts):
            raise row_error(source, number, columns["text"], "is empty")
    labels = column_values(dataset, label_column, source=source)
    feature = dataset.features[label_column]
    if label_names is None and isinstance(feature, ClassLabel):
        label_names = feature.names
    rows["label"], label_names = read_labels(
        labels, source=source, column=label_column, label_names=label_names, num_labels=num_labels
    )
    return Dataset.from_dict(rows), label_names


def tokenize_classification(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    max_length: int | None = None,
    context: int | None = None,
) -> Dataset:
    """Tokenize rows of `to_classification_rows`, without padding.

    Args:
        dataset: Columns `text`, `text_pair` if there are two texts, and `label`.
        tokenizer: The model's tokenizer.
        source: File or Hub name of the rows, for errors.
        max_length: Truncate rows to this many tokens, special ones included, the longer text of a pair first. `None`
            never truncates.
        context: The model's context length in tokens, from `balora.data.context_length`.

    Returns:
        The tokenizer's output (`input_ids`, `attention_mask`, `token_type_ids` for some models), and `labels`.

    Raises:
        BALoraError: If a row is longer than the context and `max_length` is not set, or if `max_length` exceeds the
            context or leaves no room for text.
    """
    check_max_length(max_length, context)
    paired = "text_pair" in dataset.column_names
    special = tokenizer.num_special_tokens_to_add(pair=paired)
    if max_length is not None and max_length <= special:
        raise BALoraError(
            f"max_length: {max_length} leaves no room for text beside {special} special tokens; use more"
        )

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # verbose=False: rows that are too long raise an error below, so the tokenizer need not warn.
        encoded = tokenizer(
            batch["text"],
            batch.get("text_pair"),
            truncation=max_length is not None,
            max_length=max_length,
            verbose=False,
        )
        return {**encoded, "labels": batch["label"]}

    columns = dataset.column_names
    tokenized = dataset.map(encode, batched=True, remove_columns=columns, desc=f"tokenizing {source}")
    check_lengths(map(len, tokenized["input_ids"]), source=source, max_length=max_length, context=context)
    if max_length is not None:
        texts = zip(*(dataset[name] for name in ("text", "text_pair") if name in dataset.column_names), strict=True)
        whole = partial(tokenizer, verbose=False)
        report_cut(tokenized["input_ids"], texts, whole, source=source, limit=max_length)
    return tokenized


def _choose_text_columns(dataset: Dataset, text: str | None, pair: str | None, source: str) -> dict[str, str]:
    """Return the columns from which `text`, and `text_pair` if there is one, are read."""
    if text is None and pair is not None:
        raise BALoraError(f"{source}: text_pair_column is named without text_column; name both")
    if text is not None:
        return {"text": text} if pair is None else {"text": text, "text_pair": pair}
    present = [set(form) for form in TEXT_COLUMNS if set(form) <= set(dataset.column_names)]
    # `sentence` next to `question` is half of a pair, not a single text.
    found = [form for form in TEXT_COLUMNS if set(form) in present and not any(set(form) < other for other in present)]
    if len(found) != 1:
        problem = "no known text column" if not found else "more than one way to read the texts"
        raise BALoraError(
            f"{source}: {problem} among the columns {column_list(dataset)}; name it with text_column "
            "(and text_pair_column for the second text)"
        )
    return dict(zip(("text", "text_pair"), found[0], strict=False))


def read_labels(
    values: list[Any], *, source: str, column: str, label_names: list[str] | None, num_labels: int | None
) -> tuple[list[int] | list[float], list[str]]:
    """Return class ids and the names by id, or a regression's numbers and no names.

    Args:
        values: One label per row.
        source: File or Hub name of the rows, for errors.
        column: The labels' column, for errors.
        label_names: Names by class id; an empty list for regression; `None` to read them from the values.
        num_labels: Number of classes, 1 for regression, `None` if unknown.

    Raises:
        BALoraError: See `balora.data.to_classification_rows`.
    """
    for row, value in enumerate(values, start=1):
        if value is None or value == "":
            raise row_error(source, row, column, "is missing")
        if not isinstance(value, (str, int, float)):
            raise row_error(source, row, column, f"expected a class or a number, found {shortened(value)}")
    if label_names is None and num_labels is None:
        values = _whole_class_ids(values) or values
        if _are_real_numbers(values):
            _warn_of_regression(source, column)
    if label_names == [] or (label_names is None and (num_labels == 1 or _are_real_numbers(values))):
        return _numbers(values, source, column), []
    if label_names is None:
        _refuse_decimal_commas(values, source, column)
        label_names = _names_of(values, source, column, num_labels)
    if num_labels is not None and len(label_names) != num_labels:
        raise BALoraError(
            f"{source}: has {len(label_names)} labels ({quoted(label_names)}); num_labels is {num_labels}"
        )
    return _class_ids(values, source, column, label_names), label_names


def _is_integer(value: Any) -> bool:
    # JSON's true and false are class names, though Python counts them as integers.
    return type(value) is int or (isinstance(value, str) and INTEGER.fullmatch(value) is not None)


def _are_real_numbers(values: list[Any]) -> bool:
    return all(_is_number(value) for value in values) and not all(_is_integer(value) for value in values)


def _whole_class_ids(values: list[Any]) -> list[str] | None:
    """Return ids written with a fraction of zero, `1.0`, as integers; `None` unless they count from 0 without gaps."""
    if not all(isinstance(value, str) and WHOLE.fullmatch(value) for value in values):
        return None
    ids = [WHOLE.fullmatch(value)[1] for value in values]
    return ids if len(set(ids)) > 1 and set(ids) == {str(i) for i in range(len(set(ids)))} else None


def _warn_of_regression(source: str, column: str) -> None:
    if is_main_process():
        warnings.warn(
            f"balora: {source}: the labels in {column!r} are numbers with fractions, so this is a regression; if they "
            "are classes, list these in label_names",
            stacklevel=2,
        )


def _refuse_decimal_commas(values: list[Any], source: str, column: str) -> None:
    if all(isinstance(value, str) and DECIMAL_COMMA.fullmatch(value) for value in values):
        row, value = next(((row, value) for row, value in enumerate(values, start=1) if "," in value), (0, ""))
        if row:
            problem = f"{value!r} has a decimal comma; write {value.replace(',', '.')}, or list classes in label_names"
            raise row_error(source, row, column, problem)


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
        # A gap more often means labels counted from 1, or a typo, than a class without rows.
        absent = next((i for i in range(count) if i not in present), None)
        if num_labels is None and absent is not None:
            raise BALoraError(
                f"{source}: the labels in {column!r} go up to {count - 1} but none is {absent}; class ids count from "
                f"0 without gaps, so list all classes in label_names, here {quoted(sorted(map(str, present)))}"
            )
        names = [str(i) for i in range(count)]
    else:
        names = sorted({str(value) for value in values})
    if len(names) == 1:
        raise BALoraError(
            f"{source}: every row has the label {shortened(names[0])} in {column!r}; at least two classes are needed"
        )
    return names


def _class_ids(values: list[Any], source: str, column: str, label_names: list[str]) -> list[int]:
    by_name = {name: i for i, name in enumerate(label_names)}
    if not any(_is_integer(name) for name in label_names):
        # If the names are words, an integer is a class id.
        by_name |= {str(i): i for i in range(len(label_names))}
    # `1.0` is the class 1, unless a class has that name.
    names = [name if name in by_name else WHOLE.sub(r"\1", name) for name in map(str, values)]
    for row, (value, name) in enumerate(zip(values, names, strict=True), start=1):
        if name not in by_name:
            if _is_integer(value):
                raise row_error(
                    source, row, column, f"{_out_of_range(value, len(label_names))} ({quoted(label_names)})"
                )
            raise row_error(source, row, column, f"{shortened(value)} is not one of the labels {quoted(label_names)}")
    return [by_name[name] for name in names]


def _out_of_range(value: Any, num_labels: int | None) -> str:
    allowed = "from 0" if num_labels is None else f"0 to {num_labels - 1}"
    return f"label {value} is out of range; class ids are {allowed}"
