"""Results of a study as tables, figures and one self-contained page.

Needs the `program` extra (Matplotlib, Rich, Jinja2).
"""

from balora.report.figures.loss_curves import loss_figure
from balora.report.figures.suite import suite_figure
from balora.report.figures.tradeoff import tradeoff_figure
from balora.report.page import write_markdown, write_page
from balora.report.paired import Difference, paired_difference, sentence
from balora.report.results import PRETRAINED, Run, TaskMetric, read_results, write_results
from balora.report.style import figure_svg, save_figure
from balora.report.summary import Best, Estimate, MethodSummary, TaskSummary, summarize
from balora.report.tables import markdown_grid, markdown_table, rich_grid, rich_table, suite_grid
from balora.report.verdicts import headline

__all__ = [
    "PRETRAINED",
    "Best",
    "Difference",
    "Estimate",
    "MethodSummary",
    "Run",
    "TaskMetric",
    "TaskSummary",
    "figure_svg",
    "headline",
    "loss_figure",
    "markdown_grid",
    "markdown_table",
    "paired_difference",
    "read_results",
    "rich_grid",
    "rich_table",
    "save_figure",
    "sentence",
    "suite_figure",
    "suite_grid",
    "summarize",
    "tradeoff_figure",
    "write_markdown",
    "write_page",
    "write_results",
]
