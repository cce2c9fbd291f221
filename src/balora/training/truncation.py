"""`TruncationMixin`: report the rows of TRL's trainer that `max_length` truncates."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset, IterableDataset

from balora.utils.lengths import report_truncation

IGNORED = -100
#: Column with the number of a streamed row.
ROW = "row"


class TruncationMixin:
    """Mixin for TRL's `SFTTrainer`, which truncates rows and drops rows without a completion silently.

    A stream is reported at its first row of each kind, since it is tokenized only while it is read.

    Raises:
        BALoraError: If `max_length` leaves nothing to learn in any row of a dataset.
    """

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: Any,
        args: Any,
        packing: bool,
        formatting_func: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        """Tokenize whole rows, report what truncation takes from them, and let TRL truncate and pack."""
        prepare = super()._prepare_dataset
        keeps_end = args.truncation_mode == "keep_end" or (packing and args.packing_strategy != "bfd")
        if args.max_length is None or keeps_end:
            return prepare(dataset, processing_class, args, packing, formatting_func, dataset_name)
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        dataset = prepare(dataset, processing_class, whole, False, formatting_func, dataset_name)
        source = f"{dataset_name} rows"
        if isinstance(dataset, Dataset):
            dataset = _without_lost(dataset, args.max_length, source)
        else:
            dataset = dataset.filter(_keeps_labels(args.max_length, source))
        return prepare(dataset, processing_class, args, packing, None, dataset_name)


def _without_lost(tokens: Dataset, max_length: int, source: str) -> Dataset:
    """Return the rows that keep a label within the limit; report the others and the rows that lose their end."""
    cut, lost = [], []
    for number, labels in enumerate(tokens["labels"], start=1):
        if not _learned(labels[:max_length]):
            lost.append(number)
        elif _learned(labels[max_length - 1 :]):
            cut.append(number)
    report_truncation(cut, lost, len(tokens), source=source, max_length=max_length)
    dropped = set(lost)
    return tokens.select([row for row in range(len(tokens)) if row + 1 not in dropped]) if lost else tokens


def _keeps_labels(max_length: int, source: str) -> Callable[[dict[str, Any]], bool]:
    """Return a filter of a stream's rows that keep a label within the limit; it warns of the first of each kind."""
    said = set()

    def keeps(row: dict[str, Any]) -> bool:
        kept = _learned(row["labels"][:max_length])
        loss = "end" if kept else "whole completion"
        if loss not in said and (not kept or _learned(row["labels"][max_length - 1 :])):
            said.add(loss)
            name = f"{source}, row {row[ROW]}" if ROW in row else f"a row of the {source}"
            left_out = "" if kept else " and is left out"
            warnings.warn(
                f"balora: {name}: with max_length: {max_length} it loses its {loss}{left_out}, as later rows may; "
                "use more to keep it",
                stacklevel=2,
            )
        return kept

    return keeps


def _learned(labels: Sequence[int]) -> bool:
    """Return whether a token is predicted: each is, from the one before it, except the first."""
    return any(label != IGNORED for label in labels[1:])
