"""From the results of a study to tables, figures and one self-contained page.

Needs the `program` extra (Matplotlib, Rich, Jinja2).
"""

from balora.report.curves import loss_figure
from balora.report.markdown import write_markdown
from balora.report.page import write_page
from balora.report.paired import Difference, paired_difference, sentence
from balora.report.results import PRETRAINED, Run, read_results, write_results
from balora.report.scatter import tradeoff_figure
from balora.report.sentence import headline
from balora.report.style import figure_svg, save_figure
from balora.report.suite import suite_grid
from balora.report.suite_figure import suite_figure
from balora.report.summary import Best, Estimate, MethodSummary, TaskSummary, summarize
from balora.report.table import markdown_grid, markdown_table, rich_grid, rich_table
from balora.report.task_metric import TaskMetric

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
