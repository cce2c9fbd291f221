"""Results as tables: for the terminal (Rich), for README files (Markdown), and as cells for the page.

The cells are made once, so that all three say the same.
"""

from collections.abc import Collection
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from balora.report.glossary import format_value, with_arrow
from balora.report.results import PRETRAINED, Run
from balora.report.summary import Best, Estimate, MethodSummary, TaskSummary

COST_COLUMNS = ("time (s)", "memory (MB)")
CLEAR, WITHIN_NOISE = "*", "≈"


@dataclass(frozen=True)
class Cell:
    """One printed value; `mark` is `CLEAR` or `WITHIN_NOISE` on the best fine-tuned one, else empty."""

    text: str
    mark: str = ""


@dataclass(frozen=True)
class Grid:
    """A table ready to be drawn: the first column holds the method's name, the others numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    legend: str


def summary_grid(summary: TaskSummary) -> Grid:
    """Lay out a task's summary: a row per method, a column per metric, then what training cost."""
    columns = ("method", "seeds", *map(with_arrow, summary.metrics), *COST_COLUMNS, "parameters")
    legend = grid_legend(any(row.runs > 1 for row in summary.methods), summary.best.values())
    return Grid(columns, tuple(_row(summary, row) for row in summary.methods), legend)


def metrics_grid(run: Run) -> Grid:
    """One run's metrics alone."""
    values = (Cell(format_value(metric, value)) for metric, value in run.metrics.items())
    return Grid(("method", *map(with_arrow, run.metrics)), ((Cell(run.method), *values),), "")


def rich_table(summary: TaskSummary) -> Table:
    """The summary of a task as a Rich table."""
    return rich_grid(summary_grid(summary), summary.task)


def markdown_table(summary: TaskSummary) -> str:
    """The summary of a task as a Markdown table followed by its legend, ending in a newline."""
    return markdown_grid(summary_grid(summary))


def rich_grid(grid: Grid, title: str) -> Table:
    """The grid as a Rich table, with a column per method unless there are more methods than other columns.

    Terminals are narrow, and metrics mostly outnumber methods.
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
    """The grid as a Markdown table followed by its legend, ending in a newline."""
    lines = [
        _markdown_row(grid.columns),
        _markdown_row(["---"] + ["---:"] * (len(grid.columns) - 1)),
        *(_markdown_row([_markdown_cell(cell) for cell in cells]) for cells in grid.rows),
        "",
        grid.legend.replace(f"{CLEAR} marks", "**Bold** marks"),
    ]
    return "\n".join(lines) + "\n"


def metric_cell(metric: str, value: Estimate | None, method: str, runs: int, best: Best | None) -> Cell:
    """Print a method's estimate of a metric, marked where `best` names that method.

    Args:
        metric: Name of the metric; it decides the number of decimals.
        value: The estimate, or None where no run gave a number.
        method: Name of the method.
        runs: How many runs the estimate should stand on.
        best: The leader among the methods, if there is one.
    """
    if value is None:
        return Cell("–")
    text = format_value(metric, value.mean, value.sd)
    if value.n < runs:
        # A run that broke must not silently flatter its method's mean.
        text += f" ({value.n} of {runs})"
    if best is None or best.method != method:
        return Cell(text)
    return Cell(text, WITHIN_NOISE if best.rivals else CLEAR)


def grid_legend(several_seeds: bool, best: Collection[Best]) -> str:
    """What ± and the marks in a grid mean, as far as they occur in it."""
    parts = []
    if several_seeds:
        parts.append("Mean ± sample standard deviation over seeds.")
    if best:
        parts.append(f"{CLEAR} marks the best fine-tuned method.")
    if any(leader.rivals for leader in best):
        parts.append(f"{WITHIN_NOISE} best mean, but within noise: its mean ± sd overlaps another method's.")
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
    # The mark is written out too: a log file keeps no bold.
    return Text(f"{cell.text} {cell.mark}", style="bold") if cell.mark else Text(cell.text)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.mark else cell.text
    return f"{text} {WITHIN_NOISE}" if cell.mark == WITHIN_NOISE else text


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ") for cell in cells) + " |"
