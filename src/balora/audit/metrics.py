"""A metric of an audit: values of the base and the tuned model and their difference, each with its interval."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from balora.evaluation.metric import Estimate, Units, estimate

#: The attributes of a metric that are estimates.
ESTIMATES = ("tuned", "base", "change")


@dataclass(frozen=True)
class Metric:
    """One row of an audit.

    Attributes:
        name: Name in the glossary, such as `perplexity`.
        on: What it was measured on, such as `WikiText-2`; may be empty.
        tuned: Value of the tuned model, or between the two where `base` is `None` and there are two models.
        base: Value of the base.
        change: Tuned minus base.
        units: Number of units.
        unit: What the units are, in the plural.
    """

    name: str
    on: str
    tuned: Estimate
    base: Estimate | None
    change: Estimate | None
    units: int
    unit: str

    @property
    def changed(self) -> bool:
        """True if the change's interval excludes 0."""
        return self.change is not None and (self.change.low > 0 or self.change.high < 0)

    def as_json(self) -> dict[str, Any]:
        """Return what `metric_of` reads; NaN and infinite values, for which JSON has no number, are null."""
        estimates = {
            name: None if own is None else {key: value if isfinite(value) else None for key, value in own.items()}
            for name, own in asdict(self).items()
            if name in ESTIMATES
        }
        return {**asdict(self), **estimates}


def metric_of(entry: dict[str, Any]) -> Metric:
    """Return the metric that `as_json` wrote, null being NaN."""
    estimates = {
        name: None
        if entry[name] is None
        else Estimate(**{key: np.nan if value is None else value for key, value in entry[name].items()})
        for name in ESTIMATES
    }
    return Metric(**{**entry, **estimates})


def measured(name: str, tuned: Units, base: Units | None = None, *, on: str = "", unit: str, seed: int = 0) -> Metric:
    """Return the metric of at least one unit, and of the same units of the base where it was measured on both.

    Args:
        name: Name in the glossary.
        tuned: Units of the tuned model, or of the two models compared.
        base: The same units of the base.
        on: What it was measured on.
        unit: What the units are, in the plural.
        seed: Seed of the bootstrap.
    """
    return Metric(
        name,
        on,
        estimate(tuned, seed=seed),
        None if base is None else estimate(base, seed=seed),
        None if base is None else estimate(tuned, minus=base, seed=seed),
        len(tuned.columns),
        unit,
    )


def measured_on_both(
    name: str,
    answers: tuple[np.ndarray | None, np.ndarray],
    units: Callable[[np.ndarray], Units],
    *,
    on: str,
    unit: str,
    seed: int,
) -> Metric:
    """Return the metric of what `Audited.answers` returned."""
    before, after = answers
    return measured(name, units(after), None if before is None else units(before), on=on, unit=unit, seed=seed)
