"""Verdicts of an audit: which changes are for the worse, which for the better, and which are neither.

A verdict rests on the interval of a change, its size, its number of units and the other metrics of its kind
(docs/decisions/audit.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from balora.audit.metrics import Metric
from balora.evaluation.metric import ENOUGH_UNITS, KEPT, size_that_matters
from balora.report.glossary import GLOSSARY, better_direction

#: Metrics that are drawn and stand in no table, with their captions.
DRAWN = {
    "representation_shift_by_layer": "Representation shift by layer; 0 is the embeddings.",
    "intruder_dimensions_by_matrix": "Intruder dimensions of each matrix that was looked at, of 10.",
}

WORSE, NEITHER, BETTER, SMALL = HEADINGS = ("For the worse", "Neither", "For the better", "Too little for a verdict")
Heading = Literal["For the worse", "Neither", "For the better", "Too little for a verdict"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on a change whose interval excludes 0.

    Attributes:
        heading: One of `HEADINGS`.
        reason: Why a change that its direction alone would call better or worse is not; may be empty.
    """

    heading: Heading
    reason: str = ""


def title_of(name: str) -> str:
    """Return the title of a metric on the page: that of its glossary entry, or its name."""
    return (name in GLOSSARY and GLOSSARY[name].title) or name


def verdict_of(metric: Metric, metrics: Sequence[Metric]) -> Verdict | None:
    """Return the verdict on a metric's change among all metrics of the audit; None if its interval has 0 in it."""
    if metric.name in DRAWN or not metric.changed:
        return None
    verdict = _by_itself(metric)
    if verdict.heading != BETTER:
        return verdict
    others = [other for other in metrics if other is not metric and other.changed and other.name not in DRAWN]
    for other in others:
        if kind_of(other) == kind_of(metric) and _by_itself(other).heading == WORSE:
            return Verdict(NEITHER, f"while {title_of(other.name)} changed for the worse")
    entry = GLOSSARY.get(metric.name)
    confirmed_by = None if entry is None else entry.confirmed_by
    if confirmed_by and not any(o.name == confirmed_by and _by_itself(o).heading == BETTER for o in others):
        return Verdict(NEITHER, f"not confirmed by {title_of(confirmed_by)}: the words may only have become rarer")
    return verdict


def kind_of(metric: Metric) -> tuple[str, str]:
    """Return the kind of a metric: its section, and what it was measured on if that is another ability."""
    entry = GLOSSARY.get(metric.name)
    section = KEPT if entry is None else entry.section
    return section, metric.on if section == KEPT else ""


def _by_itself(metric: Metric) -> Verdict:
    """Return the verdict on a change that excludes 0 by its direction, number of units and size."""
    if metric.units < ENOUGH_UNITS:
        return Verdict(SMALL, f"over {metric.units} {metric.unit}")
    size = size_that_matters(metric.base.value, metric.units)
    if abs(metric.change.value) < size:
        return Verdict(SMALL, f"by less than {size:.2g}")
    better = better_direction(metric.name)
    if better is None:
        return Verdict(NEITHER)
    return Verdict(WORSE if better == ("lower" if metric.change.value > 0 else "higher") else BETTER)
