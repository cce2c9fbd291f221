"""Stream rows for causal language models, for datasets larger than memory.

A stream of validated rows replaces the table of `balora.data.causal_lm`; TRL tokenizes it lazily, and `Passes` repeats
it until training ends.
"""

import json
from collections.abc import Iterator
from itertools import count, islice
from typing import Any

import datasets
from datasets import Dataset
from torch.utils.data import IterableDataset

from balora.data.causal_lm import choose_form, further_columns, is_conversational, standard_columns
from balora.data.columns import is_blank, quoted
from balora.errors import BALoraError
from balora.utils.lengths import check_lengths

#: Column with the number of a row, from 1, for later errors.
ROW = "row"


def stream_causal_lm_rows(
    table: datasets.IterableDataset,
    *,
    source: str,
    max_rows: int | None = None,
    drop_empty: bool = False,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    messages_column: str | None = None,
    text_column: str | None = None,
    prompt_template: str | None = None,
) -> datasets.IterableDataset:
    """Convert rows lazily as `to_causal_lm_rows` does, and add a column `row` with their numbers.

    The first row, read at once, determines the columns and whether rows are strings or messages.

    Args:
        table: From `balora.data.sources.stream_table`.
        source: File or Hub name of the rows, for errors.
        max_rows: Largest number of rows; none is read beyond them.
        drop_empty: Drop rows with a missing or blank text; the other rows keep their numbers.
        prompt_column: See `to_causal_lm_rows`.
        completion_column: See `to_causal_lm_rows`.
        messages_column: See `to_causal_lm_rows`.
        text_column: See `to_causal_lm_rows`.
        prompt_template: See `to_causal_lm_rows`.

    Raises:
        BALoraError: If the form is ambiguous, a column is missing, or the first row is invalid; while iterating,
            naming the first invalid row.
    """
    named = {
        "prompt": prompt_column,
        "completion": completion_column,
        "messages": messages_column,
        "text": text_column,
    }
    first = next(_rows(table, source), None)
    if first is None:
        raise BALoraError(f"{source}: no rows")
    form = choose_form(list(first), named, source=source)
    for column in form.values():
        if column not in first:
            raise BALoraError(f"{source}: no column {column!r}; it has {quoted(list(first))}")
    rows = {"table": table, "form": form, "source": source, "drop_empty": drop_empty}
    _, first = next(_numbered(**rows), (0, None))
    if first is None:
        raise BALoraError(f"{source}: no row is left whose {' and '.join(form.values())} are not empty")
    settings = {
        **rows,
        "further": further_columns(form, None, named),  # later rows may have them though the first has not
        "max_rows": max_rows,
        "conversational": is_conversational(form, first.get(form.get("prompt"))),
        "prompt_template": prompt_template,
    }
    next(_standard_rows(**settings))
    return datasets.IterableDataset.from_generator(_standard_rows, gen_kwargs=settings)


def read_whole(table: datasets.IterableDataset) -> Dataset:
    """Read all rows of a stream into a table."""
    return Dataset.from_list(list(table), features=table.features)


def _standard_rows(
    table: datasets.IterableDataset,
    form: dict[str, str],
    source: str,
    drop_empty: bool,
    further: dict[str, str],
    max_rows: int | None,
    **settings: Any,
) -> Iterator[dict[str, Any]]:
    for number, row in islice(_numbered(table, form, source, drop_empty), max_rows):
        values = {key: [row.get(column)] for key, column in (form | further).items()}
        checked = standard_columns(values, form, source=source, first_row=number, **settings)
        standard = {key: value for key, (value,) in checked.items()}
        try:
            json.dumps(standard, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise BALoraError(f"{source}, row {number}: holds a value no table can hold: {error}") from error
        yield {**standard, ROW: number}


def _numbered(
    table: datasets.IterableDataset, form: dict[str, str], source: str, drop_empty: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(_rows(table, source), start=1):
        if not (drop_empty and any(is_blank(row.get(column)) for column in form.values())):
            yield number, row


def _rows(table: datasets.IterableDataset, source: str) -> Iterator[dict[str, Any]]:
    """Yield the rows; any error of the network or a dataset's files becomes a `BALoraError`."""
    rows = iter(table)
    for number in count(1):
        try:
            row = next(rows, None)
        except BALoraError:
            raise
        except Exception as error:
            raise BALoraError(f"{source}, row {number}: cannot be read: {type(error).__name__}: {error}") from error
        if row is None:
            return
        yield row


class Passes(IterableDataset):
    """Endless passes over tokenized rows, each in a new order if the rows are shuffled.

    One iteration covers a whole training, so that resumed training, which skips the rows already seen, continues in
    the same order.

    Args:
        rows: Rows with `input_ids`, and `row` unless they were packed.
        source: File or Hub name of the rows, for errors.
        max_length: The user's limit, to which rows were truncated.
        context: The model's context length in tokens, from `context_length`.

    Raises:
        BALoraError: While iterating, if a row is longer than the context and no limit is set, or if no row is left.
    """

    def __init__(
        self, rows: datasets.IterableDataset, *, source: str, max_length: int | None, context: int | None
    ) -> None:
        self.rows, self.source = rows, source
        self.max_length, self.context = max_length, context

    def __iter__(self) -> Iterator[dict[str, Any]]:
        limits = {"source": self.source, "max_length": self.max_length, "context": self.context}
        for number in count():
            self.rows.set_epoch(number)
            row = None
            for row in self.rows:
                if self.max_length is None:
                    check_lengths([len(row["input_ids"])], first_row=row[ROW], **limits)
                yield row
            if row is None:
                raise BALoraError(
                    f"max_length: {self.max_length} leaves nothing to learn in any row of {self.source}; use more"
                )
