"""A suite of tasks in one table, as papers print it: a row per method, a column per task, and their average."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from balora.report.glossary import ARROWS, Direction, better_direction, with_arrow
from balora.report.results import PRETRAINED, Run
from balora.report.summary import Estimate, estimate, leader
from balora.report.table import Cell, Grid, grid_legend, metric_cell
from balora.report.task_metric import TaskMetric, mean_metric, metric_for, tasks_of


@dataclass(frozen=True)
class _Column:
    """A metric of every method that has it; `scores` holds each method's runs by seed, NaN where there is no score."""

    title: str
    metric: str
    better: Direction | None
    scores: Mapping[str, Mapping[int, float]]
    estimates: Mapping[str, Estimate]


def suite_grid(runs: Sequence[Run], metric_of: TaskMetric) -> Grid:
    """Lay out a study of several tasks: each task by its own metric, then their average and the parameters.

    The average is the mean of the tasks' means, and its ± the standard deviation over seeds of each seed's average. A
    method without a score on every task has none. Where better is up for some tasks and down for others there is no
    such column. `parameters` is the largest count over tasks, which differ by their heads.

    Args:
        runs: The runs of the study.
        metric_of: The metric, of all tasks or by task.

    Returns:
        The grid, the untouched model's row first.
    """
    columns = [_task_column(runs, task, metric_for(task, metric_of)) for task in tasks_of(runs)]
    average = _average_column(columns)
    columns += [average] if average else []
    best = [leader(column.better, column.estimates) for column in columns]

    methods = sorted(dict.fromkeys(run.method for run in runs), key=lambda method: method != PRETRAINED)
    rows = []
    for method in methods:
        cells = [
            metric_cell(column.metric, column.estimates.get(method), method, len(column.scores.get(method, ())), first)
            for column, first in zip(columns, best, strict=True)
        ]
        count = max(run.trainable_parameters for run in runs if run.method == method)
        rows.append((Cell(method), *cells, Cell("–" if method == PRETRAINED else f"{count:,}")))

    spread = any(value.sd is not None for column in columns for value in column.estimates.values())
    legend = grid_legend(spread, [first for first in best if first])
    if average:
        legend += " Average: every task weighs the same; its ± is that of the seeds' averages."
    return Grid(("method", *(column.title for column in columns), "parameters"), tuple(rows), legend.strip())


def _task_column(runs: Sequence[Run], task: str, metric: str) -> _Column:
    scores: dict[str, dict[int, float]] = {}
    for run in runs:
        if run.task == task:
            scores.setdefault(run.method, {})[run.seed] = run.metrics.get(metric, math.nan)
    found = {method: estimate(of_method.values()) for method, of_method in scores.items()}
    return _Column(
        title=f"{task} ({with_arrow(metric)})",
        metric=metric,
        better=better_direction(metric),
        scores=scores,
        estimates={method: value for method, value in found.items() if value is not None},
    )


def _average_column(columns: Sequence[_Column]) -> _Column | None:
    """The mean over tasks, or None where it would say nothing."""
    metric = mean_metric(column.metric for column in columns)
    if metric is None:
        return None
    complete = [method for method in columns[0].estimates if all(method in column.estimates for column in columns)]
    scores, estimates = {}, {}
    for method in complete:
        seeds = dict.fromkeys(seed for column in columns for seed in column.scores[method])
        scores[method] = {
            seed: statistics.fmean(column.scores[method].get(seed, math.nan) for column in columns) for seed in seeds
        }
        by_seed = estimate(scores[method].values())
        mean = statistics.fmean(column.estimates[method].mean for column in columns)
        estimates[method] = Estimate(mean, by_seed and by_seed.sd, by_seed.n if by_seed else 0)
    better = columns[0].better
    return _Column("average" + ARROWS[better], metric, better, scores, estimates)
