"""Percentile bootstrap intervals (Efron, 1979)."""

from collections.abc import Callable

import numpy as np

#: Resamples of a bootstrap.
RESAMPLES = 2000
#: Indices drawn at a time, which bounds the memory.
ELEMENTS = 1_000_000


def bootstrap_interval(
    statistic: Callable[..., np.ndarray], *sizes: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95 % percentile bootstrap interval of a statistic of independent units.

    Args:
        statistic: From indices `(R, size)` of units, drawn R times with replacement, to its R values. It takes one
            array for each stratum.
        sizes: Number of units of each stratum; units are resampled within strata.
        resamples: Number of resamples.
        seed: Equal seeds give equal intervals.
    """
    generator = np.random.default_rng(seed)
    step = max(1, ELEMENTS // max(sizes))
    values = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        values.append(statistic(*(generator.integers(size, size=(count, size)) for size in sizes)))
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5))
    return float(low), float(high)
