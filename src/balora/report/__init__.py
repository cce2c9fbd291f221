"""From the results of a study to tables, figures and one self-contained page.

Needs the `program` extra (Matplotlib, Rich, Jinja2).
"""

from balora.report.curves import loss_figure
from balora.report.figures import figure_svg, save_figure
from balora.report.markdown import write_markdown
from balora.report.page import write_page
from balora.report.results import PRETRAINED, Run, read_results, write_results
from balora.report.scatter import tradeoff_figure
from balora.report.sentence import headline
from balora.report.summary import Best, Estimate, MethodSummary, TaskSummary, summarize
from balora.report.table import markdown_table, rich_table

__all__ = [
    "PRETRAINED",
    "Best",
    "Estimate",
    "MethodSummary",
    "Run",
    "TaskSummary",
    "figure_svg",
    "headline",
    "loss_figure",
    "markdown_table",
    "read_results",
    "rich_table",
    "save_figure",
    "summarize",
    "tradeoff_figure",
    "write_markdown",
    "write_page",
    "write_results",
]
