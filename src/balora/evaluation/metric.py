"""Metrics: their definitions, and their values with intervals from sums over independent units.

A mean is Σx / n, a perplexity exp(Σ nats / Σ tokens), ICAT a function of three sums: one bootstrap over units (texts,
pairs, target terms) serves every metric.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from balora.utils.bootstrap import bootstrap_interval

Direction = Literal["higher", "lower"]

#: Sections of an audit's page.
SECTIONS = KEPT, COLLAPSED, SKEWED = ("Kept and lost", "Collapsed", "Skewed")

#: Fewer texts, rows or prompts than this give no verdict: a bootstrap over them is too narrow.
ENOUGH_UNITS = 20


def size_that_matters(reference: float, units: int | None = None) -> float:
    """Return the smallest difference that a verdict may rest on.

    It is 0.01, or 1 % of the reference if that is larger than 1 (a perplexity), and never less than two units' worth.

    Args:
        reference: The value compared with.
        units: Number of rows, texts or prompts that the metric is measured on, if known.
    """
    size = 0.01 * max(1.0, abs(reference))
    return max(size, 2 / units) if units else size


@dataclass(frozen=True)
class Definition:
    """The entry of a metric in the glossary.

    Attributes:
        better: The better direction; `None` where a value in between is best, or a change is neither.
        definition: Plain words, for tables and reports.
        title: Name on an audit's page; empty for the metric's own.
        formula: Definition on an audit's page, with its formula; empty for `definition`.
        section: Section of an audit's page, one of `SECTIONS`.
        decimals: Decimals on an audit's page.
        confirmed_by: Metric that must have changed for the better too before a change of this one is called better:
            this one also falls if the words of the list merely grow rarer.
    """

    better: Direction | None
    definition: str
    title: str = ""
    formula: str = ""
    section: str = KEPT
    decimals: int = 3
    confirmed_by: str | None = None


@dataclass(frozen=True)
class Units:
    """The numbers that a metric is computed from.

    Attributes:
        columns: `(N, C)`, numbers of N independent units.
        of: From sums of the columns, `(R, C)`, to R values of the metric.
        on: The part of the data that they are of, such as `religion`; empty for all of it.
    """

    columns: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]
    on: str = ""


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % percentile bootstrap interval, NaN where there is none.

    A single unit has no interval, nor has a value that is not finite.
    """

    value: float
    low: float
    high: float


def mean(values: Sequence[float] | np.ndarray, clusters: Sequence | None = None) -> Units:
    """Return units whose metric is the mean of values `(N,)`; see `clustered` for clusters."""
    values = np.asarray(values, dtype=np.float64)
    return clustered(np.stack([values, np.ones_like(values)], 1), ratio_of_sums, clusters)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Units:
    """Return units whose metric is Σ numerators / Σ denominators, `(N,)` each."""
    return Units(np.stack([numerators, denominators], 1).astype(np.float64), ratio_of_sums)


def clustered(columns: np.ndarray, of: Callable[[np.ndarray], np.ndarray], clusters: Sequence | None = None) -> Units:
    """Return units that are clusters of rows `(M, C)`, summed, since rows of one cluster are not independent."""
    if clusters is None:
        return Units(columns, of)
    place = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.zeros((place.max() + 1, columns.shape[1]))
    np.add.at(sums, place, columns)
    return Units(sums, of)


def without_units(values: Mapping[str, float]) -> dict[str, Units]:
    """Return metrics that are computed elsewhere, by name: each of a single unit, and so without an interval."""
    return {
        name: Units(np.array([[value]], dtype=np.float64), lambda sums: sums[:, 0]) for name, value in values.items()
    }


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """Return the first column over the second, NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] == 0, np.nan, sums[:, 0] / sums[:, 1])


def gap_of_means(sums: np.ndarray) -> np.ndarray:
    """Return the largest minus the smallest mean over groups, leaving out groups without members.

    Args:
        sums: `(R, 2G)`, the sums of G groups, then their counts.
    """
    size = sums.shape[1] // 2
    with np.errstate(invalid="ignore"):
        means = sums[:, :size] / sums[:, size:]  # (R, G), NaN without members
    return np.fmax.reduce(means, 1) - np.fmin.reduce(means, 1)


def estimate(units: Units, *, minus: Units | None = None, seed: int = 0) -> Estimate:
    """Return the metric of units with its interval, or its difference to that of the same units of another model.

    Args:
        units: N of them; without any the value is NaN.
        minus: The same units of the other model. Both are resampled alike, so the interval is paired: far narrower
            than the two models' own intervals suggest.
        seed: Seed of the bootstrap.
    """

    def statistic(indices: np.ndarray) -> np.ndarray:
        found = _metric(units, indices)
        return found if minus is None else found - _metric(minus, indices)

    size = len(units.columns)
    if size == 0:
        return Estimate(np.nan, np.nan, np.nan)
    value = float(statistic(np.arange(size)[None])[0])
    if not np.isfinite(value) or size == 1:
        return Estimate(value, np.nan, np.nan)
    return Estimate(value, *bootstrap_interval(statistic, size, seed=seed))


def _metric(units: Units, indices: np.ndarray) -> np.ndarray:
    """Compute the metric of resamples `(R, N)`."""
    sums = np.stack([column[indices].sum(1) for column in units.columns.T], 1)  # (R, C)
    return units.of(sums)
