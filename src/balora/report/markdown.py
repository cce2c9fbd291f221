"""The study as Markdown, for a README or a pull request: headlines, tables, pictures, versions."""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from matplotlib.figure import Figure

from balora.report.results import Run
from balora.report.scatter import tradeoff_figure
from balora.report.sentence import baseline_of, comparisons, headline
from balora.report.style import method_styles, save_figure
from balora.report.suite import suite_grid
from balora.report.suite_figure import SUITE_CAPTION, suite_figure
from balora.report.summary import summarize
from balora.report.table import markdown_grid, markdown_table
from balora.report.task_metric import TaskMetric, metric_for
from balora.report.versions import versions


def write_markdown(
    path: str | Path,
    *,
    runs: Sequence[Run],
    task_metric: TaskMetric,
    drift_metric: TaskMetric,
    baseline: str | None = None,
    figures: Sequence[tuple[str, str, Figure]] = (),
) -> None:
    """Write the summary, and beside it every picture as PNG; missing folders are made.

    Args:
        path: The Markdown file to write.
        runs: The runs of the study.
        task_metric: The metric that tells how well the task was learned; task to metric where they differ.
        drift_metric: The metric that tells how much of the original model was lost or kept; likewise.
        baseline: The method that the others are compared with; the first fine-tuned one by default.
        figures: More figures, each with a heading, which names its file too, and a caption.

    Raises:
        BALoraError: `task_metric` lacks a task, or `baseline` is no fine-tuned method of the study.
    """
    path = Path(path)
    pictures: set[str] = set()

    def picture(name: str, figure: Figure, text: str) -> str:
        """Save the figure under a name that is not taken yet, and refer to it."""
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"
        file = next(file for file in _numbered(slug) if file not in pictures)
        pictures.add(file)
        save_figure(figure, path.with_name(file))
        return f"![{re.sub(r'[][]', '', text)}]({file})"

    summaries = summarize(runs)
    several = len(summaries) > 1
    baseline = baseline_of(runs, baseline)
    compared = "\n".join(f"- {line}" for line in (comparisons(runs, task_metric, baseline) if baseline else []))
    parts = []
    if several:
        parts += [compared, markdown_grid(suite_grid(runs, task_metric)).strip()]
        figure = suite_figure(runs, task_metric, baseline) if baseline else None
        if figure is not None:
            parts += [picture("suite", figure, f"Every method against {baseline}"), SUITE_CAPTION]
    for summary in summaries:
        metric, drift = metric_for(summary.task, task_metric), metric_for(summary.task, drift_metric)
        parts += [f"## {summary.task}"] if several else []
        parts += [headline(summary, metric, drift), *([] if several else [compared])]
        parts.append(markdown_table(summary).strip())
        of_task = [run for run in runs if run.task == summary.task]
        figure = tradeoff_figure(of_task, metric, drift, method_styles(runs))
        if figure is not None:
            parts.append(picture("tradeoff", figure, f"{metric} against {drift}"))
    for heading, caption, figure in figures:
        parts += [f"## {heading}", picture(heading, figure, heading), caption]
    parts.append("Ran with " + ", ".join(f"{name} {number}" for name, number in versions().items()) + ".")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _numbered(slug: str) -> Iterator[str]:
    yield f"{slug}.png"
    for number in count(2):
        yield f"{slug}-{number}.png"
