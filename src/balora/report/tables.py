"""Results as tables: for the terminal (Rich), for README files (Markdown), and as cells for the HTML page.

A `Grid` holds the cells once, so all three show the same text.
"""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from balora.model.calibration import Calibration
from balora.report.glossary import ARROWS, Direction, better_direction, format_value, with_arrow
from balora.report.results import PRETRAINED, Run, TaskMetric, mean_metric, metric_for, tasks_of
from balora.report.summary import Best, Estimate, MethodSummary, TaskSummary, estimate, leader

COST_COLUMNS = ("time (s)", "memory (MB)")
CLEAR, OVERLAPS = "*", "≈"


@dataclass(frozen=True)
class Cell:
    """One printed value; `mark` is `CLEAR` or `OVERLAPS` on the best fine-tuned method, or else empty."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table to be rendered: the first column has the method's name, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    legend: str


def summary_grid(summary: TaskSummary) -> Grid:
    """Lay out a task's summary: one row per method, one column per metric, then the cost of training."""
    columns = ("method", "seeds", *map(with_arrow, summary.metrics), *COST_COLUMNS, "parameters")
    legend = grid_legend(any(row.runs > 1 for row in summary.methods), summary.best.values())
    return Grid(columns, tuple(_row(summary, row) for row in summary.methods), legend)


def metrics_grid(run: Run) -> Grid:
    """Lay out the metrics of a single run."""
    values = (Cell(format_value(metric, value)) for metric, value in run.metrics.items())
    return Grid(("method", *map(with_arrow, run.metrics)), ((Cell(run.method), *values),), "")


def rich_table(summary: TaskSummary) -> Table:
    """Return the summary of a task as a Rich table."""
    return rich_grid(summary_grid(summary), summary.task)


def markdown_table(summary: TaskSummary) -> str:
    """Return the summary of a task as a Markdown table with its legend, ending in a newline."""
    return markdown_grid(summary_grid(summary))


def rich_grid(grid: Grid, title: str) -> Table:
    """Return the grid as a Rich table, transposed (one column per method) unless methods outnumber metrics.

    Terminals are narrow, and there are usually more metrics than methods.
    """
    # `Text` keeps square brackets in names from being read as Rich markup.
    table = Table(title=Text(title), caption=Text(grid.legend), caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    if len(grid.rows) >= len(grid.columns):
        for column in grid.columns[1:]:
            table.add_column(Text(column), justify="right")
        for name, *cells in grid.rows:
            style = "dim" if name.text == PRETRAINED else ""
            table.add_row(Text(name.text), *map(_rich_cell, cells), style=style)
        return table
    for name, *_ in grid.rows:
        table.add_column(Text(name.text), justify="right", style="dim" if name.text == PRETRAINED else "")
    for column, *cells in list(zip(grid.columns, *grid.rows, strict=True))[1:]:
        table.add_row(Text(column), *map(_rich_cell, cells))
    return table


def markdown_grid(grid: Grid) -> str:
    """Return the grid as a Markdown table with its legend, ending in a newline."""
    lines = [
        _markdown_row(grid.columns),
        _markdown_row(["---"] + ["---:"] * (len(grid.columns) - 1)),
        *(_markdown_row([_markdown_cell(cell) for cell in cells]) for cells in grid.rows),
        "",
        grid.legend.replace(f"{CLEAR} marks", "**Bold** marks"),
    ]
    return "\n".join(lines) + "\n"


def metric_cell(metric: str, value: Estimate | None, method: str, runs: int, best: Best | None) -> Cell:
    """Format a method's estimate of a metric, marked if `best` is that method.

    Args:
        metric: Name of the metric, which decides the number of decimals.
        value: The estimate, or None if no run gave a number.
        method: Name of the method.
        runs: Number of runs of the method.
        best: The best method, if known.
    """
    if value is None:
        return Cell("–")
    text = format_value(metric, value.mean, value.sd)
    if value.n < runs:
        # A failed run must not silently improve its method's mean.
        text += f" ({value.n} of {runs})"
    if best is None or best.method != method:
        return Cell(text)
    return Cell(text, OVERLAPS if best.rivals else CLEAR)


def grid_legend(several_seeds: bool, best: Collection[Best]) -> str:
    """Return the legend of a grid: the meaning of ± and of the marks that occur in it."""
    parts = []
    if several_seeds:
        parts.append("Mean ± sample standard deviation over seeds.")
    if best:
        parts.append(f"{CLEAR} marks the best fine-tuned method.")
    if any(leader.rivals for leader in best):
        parts.append(f"{OVERLAPS} best mean, but its mean ± sd overlaps another method's.")
    if any(not leader.spread_known for leader in best):
        parts.append("Some methods have a single seed, so their spread is unknown.")
    return " ".join(parts)


def _row(summary: TaskSummary, row: MethodSummary) -> tuple[Cell, ...]:
    untouched = row.method == PRETRAINED
    return (
        Cell(row.method),
        Cell("–" if untouched else str(row.runs)),
        *(
            metric_cell(metric, row.metrics.get(metric), row.method, row.runs, summary.best.get(metric))
            for metric in summary.metrics
        ),
        Cell("–" if untouched else f"{row.train_seconds.mean:,.1f}"),
        Cell(f"{row.peak_memory_mb.mean:,.0f}"),
        Cell("–" if untouched else f"{row.trainable_parameters:,}"),
    )


def _rich_cell(cell: Cell) -> Text:
    # The mark is written as text too, since a log file has no bold.
    return Text(f"{cell.text} {cell.mark}", style="bold") if cell.mark else Text(cell.text)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.mark else cell.text
    return f"{text} {OVERLAPS}" if cell.mark == OVERLAPS else text


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ") for cell in cells) + " |"


@dataclass(frozen=True)
class _Column:
    """A metric of every method that has it; `scores` has each method's score by seed, NaN if there is none."""

    title: str
    metric: str
    better: Direction | None
    scores: Mapping[str, Mapping[int, float]]
    estimates: Mapping[str, Estimate]


def suite_grid(runs: Sequence[Run], metric_of: TaskMetric) -> Grid:
    """Lay out a study of several tasks: each task by its own metric, then their average and the parameters.

    The average is the mean of the tasks' means, and its ± is the standard deviation over seeds of each seed's average.
    Only methods with a score on every task have an average. The column is omitted if higher is better for some tasks
    and lower for others. `parameters` is the largest count over tasks, which differ in their heads.

    Args:
        runs: The runs of the study.
        metric_of: One metric for all tasks, or task to metric.

    Returns:
        The grid, with the pretrained model's row first.
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
    """Return the column of means over tasks, or None if the mean has no meaning."""
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


CALIBRATION_COLUMNS = ("gradient", "weight now", "share now", "weight", "share")


def calibration_table(calibration: Calibration) -> Table:
    """Return a calibration as a Rich table, one row per term.

    Columns: norm of the unweighted gradient, then weight and share of the task's gradient, before and after. Terms
    that could not be calibrated have a dash, and their reason below the table.
    """
    legend = [
        "Gradient: norm over the trained parameters, unweighted. Share: that of the weighted term over the task's.",
        *(f"{term}: {reason}." for term, reason in calibration.reasons.items()),
    ]
    table = Table(title=Text("calibration"), caption=Text("\n".join(legend)), caption_justify="left")
    table.box = box.SIMPLE_HEAD
    table.add_column("")
    for title in CALIBRATION_COLUMNS:
        table.add_column(title, justify="right")
    task = calibration.norms["task"]
    table.add_row("task", f"{task:.3g}", *[""] * (len(CALIBRATION_COLUMNS) - 1))
    for term, weight in calibration.weights.items():
        norm, present = calibration.norms[term], calibration.present[term]
        new = ("–", "–") if weight is None else (f"{weight:.3g}", f"{weight * norm / task:.3g}")
        table.add_row(term, f"{norm:.3g}", f"{present:.3g}", f"{present * norm / task:.3g}", *new)
    return table
