"""Summaries of runs: mean and spread per method, and the best method per metric.

Runs of different tasks are never averaged together: there is one summary per task.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from balora.report.glossary import Direction, better_direction
from balora.report.results import PRETRAINED, Run


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds and sample standard deviation (n − 1), which is `None` for a single seed."""

    mean: float
    sd: float | None
    n: int

    def overlaps(self, other: "Estimate") -> bool:
        """Return whether the two mean ± sd intervals touch; an unknown sd counts as zero."""
        return abs(self.mean - other.mean) <= (self.sd or 0.0) + (other.sd or 0.0)


@dataclass(frozen=True)
class Best:
    """The fine-tuned method with the best mean of a metric, and how reliable its lead is.

    Attributes:
        method: Name of the leading method.
        value: Its estimate of the metric.
        rivals: Methods whose mean ± sd interval overlaps the leader's. This is a reading aid for tables and not a
            significance test; `report.verdicts` judges the lead.
        spread_known: True if every compared method has at least two seeds; otherwise an empty `rivals` proves
            nothing.
    """

    method: str
    value: Estimate
    rivals: tuple[str, ...]
    spread_known: bool


@dataclass(frozen=True)
class MethodSummary:
    """One method over its seeds; `metrics` has only those for which some run has a number."""

    method: str
    runs: int
    metrics: dict[str, Estimate]
    train_seconds: Estimate
    peak_memory_mb: Estimate
    trainable_parameters: int


@dataclass(frozen=True)
class TaskSummary:
    """All methods on one task, methods and metrics in the order in which they first appear in the runs.

    `best` has the metrics with a known better direction that at least two fine-tuned methods have. `runs` are the runs
    summarized.
    """

    task: str
    metrics: tuple[str, ...]
    methods: tuple[MethodSummary, ...]
    best: dict[str, Best]
    runs: tuple[Run, ...]


def summarize(runs: Iterable[Run]) -> list[TaskSummary]:
    """Summarize the runs, one summary per task in order of first appearance."""
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.task, []).append(run)
    return [_summarize_task(task, task_runs) for task, task_runs in by_task.items()]


def estimate(values: Iterable[float]) -> Estimate | None:
    """Return mean and sample standard deviation of the finite values, or None if there are no finite values."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return Estimate(statistics.fmean(finite), statistics.stdev(finite) if len(finite) > 1 else None, len(finite))


def _summarize_task(task: str, runs: Sequence[Run]) -> TaskSummary:
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    metrics = tuple(dict.fromkeys(name for run in runs for name in run.metrics))
    methods = tuple(_summarize_method(method, of_method, metrics) for method, of_method in by_method.items())
    best = {}
    for metric in metrics:
        first = leader(
            better_direction(metric), {row.method: row.metrics[metric] for row in methods if metric in row.metrics}
        )
        if first is not None:
            best[metric] = first
    return TaskSummary(task, metrics, methods, best, tuple(runs))


def _summarize_method(method: str, runs: Sequence[Run], metrics: Sequence[str]) -> MethodSummary:
    found = {name: estimate(run.metrics.get(name, math.nan) for run in runs) for name in metrics}
    return MethodSummary(
        method=method,
        runs=len(runs),
        metrics={name: value for name, value in found.items() if value is not None},
        train_seconds=estimate(run.train_seconds for run in runs),
        peak_memory_mb=estimate(run.peak_memory_mb for run in runs),
        trainable_parameters=max(run.trainable_parameters for run in runs),
    )


def leader(direction: Direction | None, estimates: Mapping[str, Estimate]) -> Best | None:
    """Return the best fine-tuned method, or None if there are fewer than two or the direction is unknown.

    Args:
        direction: The better direction.
        estimates: Method to its estimate; the pretrained model's is ignored.
    """
    candidates = {method: value for method, value in estimates.items() if method != PRETRAINED}
    if direction is None or len(candidates) < 2:
        return None
    choose = max if direction == "higher" else min
    first = choose(candidates, key=lambda method: candidates[method].mean)
    return Best(
        method=first,
        value=candidates[first],
        rivals=tuple(
            method for method in candidates if method != first and candidates[method].overlaps(candidates[first])
        ),
        spread_known=all(value.sd is not None for value in candidates.values()),
    )
