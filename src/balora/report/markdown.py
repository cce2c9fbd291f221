"""The study as Markdown, for a README or a pull request: headline, table, picture, versions."""

from collections.abc import Sequence
from pathlib import Path

from balora.report.figures import save_figure
from balora.report.results import Run
from balora.report.scatter import tradeoff_figure
from balora.report.sentence import headline
from balora.report.summary import summarize
from balora.report.table import markdown_table
from balora.report.versions import versions


def write_markdown(path: str | Path, *, runs: Sequence[Run], task_metric: str, drift_metric: str) -> None:
    """Write the summary, and beside it the task-against-drift picture of each task as PNG.

    Args:
        path: The Markdown file to write.
        runs: The runs of the study.
        task_metric: The metric that tells how well the task was learned.
        drift_metric: The metric that tells how much of the original model was lost or kept.
    """
    path = Path(path)
    parts = []
    for number, summary in enumerate(summarize(runs), start=1):
        parts += [headline(summary, task_metric, drift_metric), markdown_table(summary).strip()]
        figure = tradeoff_figure([run for run in runs if run.task == summary.task], task_metric, drift_metric)
        if figure is not None:
            picture = path.with_name(f"tradeoff-{number}.png" if number > 1 else "tradeoff.png")
            save_figure(figure, picture)
            parts.append(f"![{task_metric} against {drift_metric}]({picture.name})")
    parts.append("Ran with " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".")
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
