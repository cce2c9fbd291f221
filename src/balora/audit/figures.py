"""A figure of an audit: what it is on the base, on the tuned model and between them, each with its 95 % interval.

Every figure here is a function of sums over independent units (texts, pairs, target terms, matrices): a mean is
Σx / n, a perplexity exp(Σ nats / Σ tokens), ICAT a function of three sums. So one bootstrap over units serves them
all, and since base and tuned model answer the same units, the interval of the change is paired: it is far narrower
than the two intervals beside it would suggest.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

from balora.utils.bootstrap import bootstrap_interval

#: Those attributes of a figure that are estimates.
ESTIMATES = ("tuned", "base", "change")


@dataclass(frozen=True)
class Units:
    """What a figure is made of.

    Attributes:
        columns: `(N, C)`, numbers of N independent units.
        of: From sums of the columns, `(R, C)`, to R values of the figure.
    """

    columns: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its 95 % percentile bootstrap interval (Efron, 1979), NaN where there is none.

    A single unit has no interval, and a value that is not finite has none.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """One row of an audit.

    Attributes:
        name: By which its definition is found, such as `perplexity`.
        on: What it was measured on, such as `WikiText-2`; may be empty.
        tuned: Of the tuned model, or between the two where `base` is `None` and there are two models.
        base: Of the base.
        change: Tuned minus base.
        units: How many units there are.
        unit: What they are, in the plural.
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
        """Whether the change's interval leaves out 0."""
        return self.change is not None and (self.change.low > 0 or self.change.high < 0)

    def as_json(self) -> dict[str, Any]:
        """For `figure_of`; as null what JSON has no number for, NaN and infinite values."""
        estimates = {
            name: None if own is None else {key: value if isfinite(value) else None for key, value in own.items()}
            for name, own in asdict(self).items()
            if name in ESTIMATES
        }
        return {**asdict(self), **estimates}


def figure_of(entry: dict[str, Any]) -> Figure:
    """A figure as `as_json` wrote it, null being NaN."""
    estimates = {
        name: None
        if entry[name] is None
        else Estimate(**{key: np.nan if value is None else value for key, value in entry[name].items()})
        for name in ESTIMATES
    }
    return Figure(**{**entry, **estimates})


def measured(name: str, tuned: Units, base: Units | None = None, *, on: str = "", unit: str, seed: int = 0) -> Figure:
    """The figure of units, at least one of them; of the base's too where it was measured on both.

    Args:
        name: Of the figure.
        tuned: Of the tuned model, or of what is between the two.
        base: The same units of the base.
        on: What it was measured on.
        unit: What the units are, in the plural.
        seed: Of the bootstrap.
    """
    change = None
    if base is not None:
        change = _estimate(lambda i: _values(tuned, i) - _values(base, i), len(tuned.columns), seed)
    return Figure(
        name,
        on,
        _estimate(lambda i: _values(tuned, i), len(tuned.columns), seed),
        None if base is None else _estimate(lambda i: _values(base, i), len(base.columns), seed),
        change,
        len(tuned.columns),
        unit,
    )


def mean(values: Sequence[float] | np.ndarray, clusters: Sequence | None = None) -> Units:
    """Units whose figure is the mean of values `(N,)`; of one cluster's values together where they share something."""
    values = np.asarray(values, dtype=np.float64)
    return clustered(np.stack([values, np.ones_like(values)], 1), ratio_of_sums, clusters)


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> Units:
    """Units whose figure is Σ numerators / Σ denominators, `(N,)` each."""
    return Units(np.stack([numerators, denominators], 1).astype(np.float64), ratio_of_sums)


def clustered(columns: np.ndarray, of: Callable[[np.ndarray], np.ndarray], clusters: Sequence | None = None) -> Units:
    """Units that are clusters of rows `(M, C)`, summed, since rows of one cluster are not independent."""
    if clusters is None:
        return Units(columns, of)
    place = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums = np.zeros((place.max() + 1, columns.shape[1]))
    np.add.at(sums, place, columns)
    return Units(sums, of)


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """First column over second, NaN where the second is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sums[:, 1] == 0, np.nan, sums[:, 0] / sums[:, 1])


def _values(units: Units, indices: np.ndarray) -> np.ndarray:
    """Of resamples `(R, N)`: the figure of each."""
    sums = np.stack([column[indices].sum(1) for column in units.columns.T], 1)  # (R, C)
    return units.of(sums)


def _estimate(statistic: Callable[[np.ndarray], np.ndarray], size: int, seed: int) -> Estimate:
    value = float(statistic(np.arange(size)[None])[0])
    if not np.isfinite(value) or size == 1:
        return Estimate(value, np.nan, np.nan)
    low, high = bootstrap_interval(statistic, size, seed=seed)
    return Estimate(value, low, high)
