"""The summary of a task as a table: for the terminal (Rich), for README files (Markdown), and as cells for the page.

The cells are made once, so that all three say the same.
"""

from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from balora.report.glossary import format_value, with_arrow
from balora.report.results import PRETRAINED
from balora.report.summary import MethodSummary, TaskSummary

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
    return Grid(columns, tuple(_row(summary, row) for row in summary.methods), _legend(summary))


def rich_table(summary: TaskSummary) -> Table:
    """The summary as a Rich table with a column per method: terminals are narrow, and metrics outnumber methods."""
    grid = summary_grid(summary)
    # `Text` keeps square brackets in names from being read as Rich markup.
    table = Table(title=Text(summary.task), caption=Text(grid.legend), caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for name, *_ in grid.rows:
        table.add_column(Text(name.text), justify="right", style="dim" if name.text == PRETRAINED else "")
    for title, *cells in list(zip(grid.columns, *grid.rows, strict=True))[1:]:
        table.add_row(Text(title), *map(_rich_cell, cells))
    return table


def markdown_table(summary: TaskSummary) -> str:
    """The summary as a Markdown table followed by its legend, ending in a newline."""
    grid = summary_grid(summary)
    lines = [
        _markdown_row(grid.columns),
        _markdown_row(["---"] + ["---:"] * (len(grid.columns) - 1)),
        *(_markdown_row([_markdown_cell(cell) for cell in cells]) for cells in grid.rows),
        "",
        grid.legend.replace(f"{CLEAR} marks", "**Bold** marks"),
    ]
    return "\n".join(lines) + "\n"


def _row(summary: TaskSummary, row: MethodSummary) -> tuple[Cell, ...]:
    untouched = row.method == PRETRAINED
    return (
        Cell(row.method),
        Cell("–" if untouched else str(row.runs)),
        *(_metric_cell(summary, row, metric) for metric in summary.metrics),
        Cell("–" if untouched else f"{row.train_seconds.mean:,.1f}"),
        Cell(f"{row.peak_memory_mb.mean:,.0f}"),
        Cell("–" if untouched else f"{row.trainable_parameters:,}"),
    )


def _metric_cell(summary: TaskSummary, row: MethodSummary, metric: str) -> Cell:
    if metric not in row.metrics:
        return Cell("–")
    value = row.metrics[metric]
    text = format_value(metric, value.mean, value.sd)
    if value.n < row.runs:
        # A run that broke must not silently flatter its method's mean.
        text += f" ({value.n} of {row.runs})"
    best = summary.best.get(metric)
    if best is None or best.method != row.method:
        return Cell(text)
    return Cell(text, WITHIN_NOISE if best.rivals else CLEAR)


def _legend(summary: TaskSummary) -> str:
    parts = []
    if any(row.runs > 1 for row in summary.methods):
        parts.append("Mean ± sample standard deviation over seeds.")
    if summary.best:
        parts.append(f"{CLEAR} marks the best fine-tuned method.")
    if any(best.rivals for best in summary.best.values()):
        parts.append(f"{WITHIN_NOISE} best mean, but within noise: its mean ± sd overlaps another method's.")
    if any(not best.spread_known for best in summary.best.values()):
        parts.append("Some methods have a single seed, so their spread is unknown.")
    return " ".join(parts)


def _rich_cell(cell: Cell) -> Text:
    # The mark is written out too: a log file keeps no bold.
    return Text(f"{cell.text} {cell.mark}", style="bold") if cell.mark else Text(cell.text)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.mark else cell.text
    return f"{text} {WITHIN_NOISE}" if cell.mark == WITHIN_NOISE else text


def _markdown_row(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ") for cell in cells) + " |"
