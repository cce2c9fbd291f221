"""Summaries of runs: mean and spread per method, the best method per metric, and headlines in words.

Runs of different tasks are never averaged together: there is one summary per task.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from balora.errors import BALoraError
from balora.report.glossary import Direction, better_direction, format_value
from balora.report.paired import paired_difference, sentence
from balora.report.results import PRETRAINED, Run, TaskMetric, tasks_of


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
        rivals: Methods whose mean ± sd interval overlaps the leader's. When there are any, the lead is *within noise*:
            seeds alone could have produced it. This is a reading aid and not a significance test.
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

    `best` has the metrics with a known better direction that at least two fine-tuned methods have.
    """

    task: str
    metrics: tuple[str, ...]
    methods: tuple[MethodSummary, ...]
    best: dict[str, Best]


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
    return TaskSummary(task, metrics, methods, best)


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


#: Metrics of what remains of the pretrained model; any other metric on the drift axis measures the task a second time.
KEPT = {
    *("perplexity", "kl_to_base", "mse_to_base", "top1_agreement", "representation_shift", "linear_cka"),
    *("fact_recall", "attribute_recall", "single_em"),
}


def headline(summary: TaskSummary, task_metric: str, drift_metric: str) -> str:
    """Return a sentence that names the best fine-tuned method in `task_metric` and in `drift_metric`."""
    task = _lead(summary, task_metric, "does best on the task")
    kept = drift_metric in KEPT
    drift = _lead(
        summary, drift_metric, "keeps most of the original model" if kept else "does best in the second measure"
    )
    if task is None and drift is None:
        return f"On {summary.task} there are too few results to compare methods by {task_metric} or {drift_metric}."
    claims = f"On {summary.task}, " + "; ".join(part for part in (task, drift) if part)
    return claims + _against_pretrained(summary, task_metric) + "."


def baseline_of(runs: Sequence[Run], baseline: str | None) -> str | None:
    """Return the method to compare the others with: `baseline`, or else the first fine-tuned method if there is one.

    Raises:
        BALoraError: `baseline` has no runs, or is the pretrained model, which has no seeds to pair.
    """
    methods = dict.fromkeys(run.method for run in runs if run.method != PRETRAINED)
    if baseline is not None and baseline not in methods:
        raise BALoraError(
            f"baseline: {baseline!r} is not a fine-tuned method of this study; use one of {', '.join(methods)}"
        )
    return baseline or next(iter(methods), None)


def comparisons(runs: Sequence[Run], task_metric: TaskMetric, baseline: str) -> list[str]:
    """Return a sentence per other fine-tuned method: its paired difference to the baseline over all tasks.

    A single task with a single seed has no sentences, since its table already shows the difference.
    """
    methods = dict.fromkeys(run.method for run in runs if run.method not in (PRETRAINED, baseline))
    found = [paired_difference(runs, method, baseline, task_metric) for method in methods]
    several = len(tasks_of(runs)) > 1
    return [sentence(difference) for difference in found if difference and (several or difference.low is not None)]


def _lead(summary: TaskSummary, metric: str, praise: str) -> str | None:
    best = summary.best.get(metric)
    if best is None:
        return None
    claim = f"{best.method} {praise} ({metric} {format_value(metric, best.value.mean, best.value.sd)})"
    if best.rivals:
        return f"{claim}, but its lead over {_listing(best.rivals)} is within noise"
    if not best.spread_known:
        return f"{claim}, though without a spread over seeds this may be chance"
    return f"{claim}, by more than the spread over seeds"


def _against_pretrained(summary: TaskSummary, metric: str) -> str:
    """Return a remark if no method improved on the pretrained model, or else an empty text."""
    best = summary.best.get(metric)
    untouched = next((row.metrics.get(metric) for row in summary.methods if row.method == PRETRAINED), None)
    if best is None or untouched is None:
        return ""
    gain = best.value.mean - untouched.mean
    improved = gain > 0 if better_direction(metric) == "higher" else gain < 0
    return "" if improved else f"; no method improved on the untouched model ({format_value(metric, untouched.mean)})"


def _listing(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
