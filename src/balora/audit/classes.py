"""A classifier on rows: its accuracy, its divergence from the base, and the entropy of its predictions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from balora.audit.metrics import Metric, measured
from balora.audit.models import Audited
from balora.data import check_lengths
from balora.evaluation.classification import scarcest_class
from balora.evaluation.metric import Units, mean, ratio


def encoded_rows(audited: Audited, rows: Dataset, *, on: str, max_length: int | None) -> list[dict[str, list[int]]]:
    """Tokenize rows, with the segments of pairs.

    Args:
        audited: The models, whose tokenizer is used.
        rows: N rows with `text`, and `text_pair` where texts come in pairs.
        on: Name of the rows, for errors.
        max_length: Tokens that a row is cut to; `None` cuts nothing.

    Raises:
        BALoraError: If a row that is not cut is longer than the model takes.
    """
    texts = [list(rows[name]) for name in ("text", "text_pair") if name in rows.column_names]
    cut = {"truncation": max_length is not None, "max_length": max_length}
    encoded = audited.tokenizer(*texts, **cut, verbose=False)
    check_lengths(map(len, encoded["input_ids"]), source=on, max_length=max_length, context=audited.context())
    return [{name: values[i] for name, values in encoded.items()} for i in range(len(rows))]


@torch.no_grad()
def class_log_probabilities(
    audited: Audited, rows: Dataset, *, on: str, max_length: int | None, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return log p(class | row) of base and tuned model, `(N, D)` each.

    Args:
        audited: A classifier and its base.
        rows: N rows with `text`, and `text_pair` where texts come in pairs.
        on: Name of the rows, for errors.
        max_length: Tokens that a row is cut to; `None` cuts nothing.
        batch_size: Rows at a time, those of like length together.

    Raises:
        BALoraError: If a row that is not cut is longer than the model takes.
    """
    encoded = encoded_rows(audited, rows, on=on, max_length=max_length)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]["input_ids"]))
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for first in range(0, len(order), batch_size):
        part = [encoded[i] for i in order[first : first + batch_size]]
        inputs = audited.tokenizer.pad(part, return_tensors="pt")
        for side, output in zip(found, audited.both(**inputs), strict=True):
            side.append(output.logits.double().log_softmax(-1).cpu())
    back = np.argsort(order)
    before, after = (torch.cat(side).numpy()[back] for side in found)
    return before, after


def measure_classes(
    audited: Audited, before: np.ndarray, after: np.ndarray, *, labels: Sequence[int] | None, on: str, seed: int = 0
) -> list[Metric]:
    """Return a classifier's metrics on rows.

    Args:
        audited: The classifier and its base.
        before: From `class_log_probabilities`, `(N, D)`.
        after: The same of the tuned model.
        labels: `(N,)`, class ids, where they are known.
        on: Name of the rows.
        seed: Seed of the bootstrap.

    Returns:
        `accuracy` and `minority_recall`, the recall of the scarcest class, where labels are known, and `entropy`, of
        both models; `kl_to_base` and `top1_agreement` between the two.
    """

    def both(name: str, units: Callable[[np.ndarray], Units]) -> Metric:
        base = None if audited.alone else units(before)
        return measured(name, units(after), base, on=on, unit="rows", seed=seed)

    figures = []
    if labels is not None:
        truth = np.asarray(labels)
        rare = truth == scarcest_class(truth)
        figures += [
            both("accuracy", lambda log_p: mean(log_p.argmax(1) == truth)),
            both("minority_recall", lambda log_p: ratio(rare & (log_p.argmax(1) == truth), rare)),
        ]
    figures.append(both("entropy", lambda log_p: mean(-(np.exp(log_p) * log_p).sum(1))))
    if not audited.alone:
        divergence = (np.exp(before) * (before - after)).sum(1).clip(0)
        agreement = before.argmax(1) == after.argmax(1)
        figures += [
            measured(name, mean(values), on=on, unit="rows", seed=seed)
            for name, values in (("kl_to_base", divergence), ("top1_agreement", agreement))
        ]
    return figures
