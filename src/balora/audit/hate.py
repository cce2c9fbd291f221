"""HateCheck in an audit: whether a classifier finds hate, and finds it alike whoever it is about."""

from collections.abc import Callable, Sequence

import numpy as np
from datasets import Dataset

from balora.audit.classes import class_log_probabilities
from balora.audit.figures import Figure, Units, clustered, measured
from balora.audit.models import Audited
from balora.evaluation.bias import Case, identity_pairs, total_variation


def measure_hatecheck(
    audited: Audited, cases: Sequence[Case], hateful: int, *, max_length: int | None, batch_size: int, seed: int = 0
) -> list[Figure]:
    """`hatecheck_f1`, the gaps of recall and of the false positive rate over target groups, and the Bias Score.

    Units are templates: cases filled from one are not independent.

    Args:
        audited: A classifier and its base.
        cases: At least one.
        hateful: The class that says so.
        max_length: Tokens that a case is cut to; `None` cuts nothing.
        batch_size: Cases at a time.
        seed: Of the bootstrap.
    """
    rows = Dataset.from_dict({"text": [case.text for case in cases]})
    answers = class_log_probabilities(audited, rows, on="HateCheck", max_length=max_length, batch_size=batch_size)
    truth = np.array([case.hateful for case in cases])
    target = np.array([case.target for case in cases])
    groups = [name for name in np.unique(target) if name]
    templates = [f"{case.functionality}/{case.template}" for case in cases]
    pairs, filled_from = identity_pairs(cases)

    def both(name: str, units: Callable[[np.ndarray], Units]) -> Figure:
        before, after = (units(log_p) for log_p in answers)
        base = None if audited.alone else before
        return measured(name, after, base, on="HateCheck", unit="templates", seed=seed)

    def f1(log_p: np.ndarray) -> Units:
        said = log_p.argmax(1) == hateful
        return clustered(np.stack([said & truth, said, truth], 1).astype(float), _f1, templates)

    def gap(log_p: np.ndarray, kind: np.ndarray) -> Units:
        """Of the share called hateful among cases of a kind."""
        said = log_p.argmax(1) == hateful
        columns = [column for g in groups for column in (said & kind & (target == g), kind & (target == g))]
        return clustered(np.stack(columns, 1).astype(float), _gap, templates)

    def score(log_p: np.ndarray) -> Units:
        p = np.exp(log_p)
        distances = total_variation(p[pairs[:, 0]], p[pairs[:, 1]])
        return clustered(np.stack([distances, np.ones(len(pairs))], 1), lambda s: s[:, 0] / s[:, 1], filled_from)

    figures = [both("hatecheck_f1", f1)]
    if groups:
        figures.append(both("hatecheck_recall_gap", lambda log_p: gap(log_p, truth)))
        figures.append(both("hatecheck_false_positive_rate_gap", lambda log_p: gap(log_p, ~truth)))
    if len(pairs):
        figures.append(both("hatecheck_bias_score", score))
    return figures


def _f1(sums: np.ndarray) -> np.ndarray:
    """From (true positives, positives said, positives): 0 where there are none, as scikit-learn has it."""
    return 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1)


def _gap(sums: np.ndarray) -> np.ndarray:
    """Largest minus smallest rate over groups, whose counts stand in pairs; a group without cases is left out."""
    with np.errstate(invalid="ignore"):
        rates = sums[:, ::2] / sums[:, 1::2]  # (R, G), NaN without cases
    return np.fmax.reduce(rates, 1) - np.fmin.reduce(rates, 1)
