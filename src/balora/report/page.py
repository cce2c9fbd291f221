"""The report of a study: one HTML file without scripts or network access, and the same as Markdown.

The HTML page can be mailed, archived and opened offline, since its figures are inside. The Markdown file, for a README
or a pull request, has its figures as PNG files beside it.
"""

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from balora.report.figures.loss_curves import History, loss_figure
from balora.report.figures.suite import SUITE_CAPTION, suite_figure
from balora.report.figures.tradeoff import tradeoff_figure
from balora.report.glossary import format_value, known
from balora.report.results import PRETRAINED, Run, TaskMetric, metric_for
from balora.report.style import figure_svg, method_styles, save_figure
from balora.report.summary import TaskSummary, summarize
from balora.report.tables import COST_COLUMNS, markdown_grid, markdown_table, suite_grid, summary_grid
from balora.report.verdicts import baseline_of, comparisons, headline


def write_page(
    path: str | Path,
    *,
    title: str,
    runs: Sequence[Run],
    histories: Mapping[str, History],
    recipe_text: str,
    task_metric: TaskMetric,
    drift_metric: TaskMetric,
    baseline: str | None = None,
    notes: Sequence[str] = (),
    figures: Sequence[tuple[str, str, Figure]] = (),
) -> None:
    """Write the report of a study as one HTML file; missing folders are created.

    A study of several tasks begins with the comparison over all tasks, then has a section per task.

    Args:
        path: The HTML file to write.
        title: Title of the page.
        runs: The runs of the study.
        histories: `Run.id` to the rows of the Trainer's `log_history`; may lack runs or be empty.
        recipe_text: The recipe of the study, shown as it is.
        task_metric: The metric of the task: one for all tasks, or task to metric.
        drift_metric: The metric of how far the model moved from the pretrained one; likewise.
        baseline: The method to compare the others with; default: the first fine-tuned one.
        notes: Remarks and caveats, one paragraph each, shown below the headline.
        figures: More figures, each with a heading and a caption.

    Raises:
        BALoraError: `task_metric` lacks a task, or `baseline` is not a fine-tuned method of the study.
    """
    # Everything that the user gave is escaped; only the figures, which escape their own text, are markup.
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    summaries = summarize(runs)
    baseline = baseline_of(runs, baseline)
    html = templates.get_template("page.html").render(
        title=title,
        comparisons=comparisons(runs, task_metric, baseline) if baseline else [],
        notes=notes,
        suite=_suite_view(runs, task_metric, baseline) if len(summaries) > 1 else None,
        tasks=[
            _task_view(
                summary,
                runs,
                histories,
                metric_for(summary.task, task_metric),
                metric_for(summary.task, drift_metric),
            )
            for summary in summaries
        ],
        figures=[
            (heading, caption, _svg(figure, f"figure-{index}"))
            for index, (heading, caption, figure) in enumerate(figures)
        ],
        glossary={metric: entry.definition for metric in _metrics(summaries) if (entry := known(metric))},
        recipe_text=recipe_text,
        versions=versions(),
        pretrained=PRETRAINED,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def _suite_view(runs: Sequence[Run], task_metric: TaskMetric, baseline: str | None) -> dict[str, Any]:
    figure = suite_figure(runs, task_metric, baseline) if baseline else None
    return {"grid": suite_grid(runs, task_metric), "figure": _svg(figure, "suite"), "caption": SUITE_CAPTION}


def _task_view(
    summary: TaskSummary,
    runs: Sequence[Run],
    histories: Mapping[str, History],
    task_metric: str,
    drift_metric: str,
) -> dict[str, Any]:
    of_task = [run for run in runs if run.task == summary.task]
    styles = method_styles(runs)
    return {
        "name": summary.task,
        "headline": headline(summary, task_metric, drift_metric),
        "grid": summary_grid(summary),
        "metric": task_metric,
        "drift_metric": drift_metric,
        "tradeoff": _svg(tradeoff_figure(of_task, task_metric, drift_metric, styles), f"tradeoff-{summary.task}"),
        "curves": _svg(loss_figure(of_task, histories, styles), f"curves-{summary.task}"),
        "run_columns": ["method", "seed", *summary.metrics, *COST_COLUMNS],
        "runs": [_run_row(run, summary.metrics) for run in of_task],
    }


def _run_row(run: Run, metrics: Sequence[str]) -> list[str]:
    values = [format_value(metric, run.metrics.get(metric, float("nan"))) for metric in metrics]
    return [run.method, str(run.seed), *values, f"{run.train_seconds:,.1f}", f"{run.peak_memory_mb:,.0f}"]


def _metrics(summaries: Sequence[TaskSummary]) -> list[str]:
    return list(dict.fromkeys(metric for summary in summaries for metric in summary.metrics))


def _svg(figure: Figure | None, name: str) -> Markup | None:
    return None if figure is None else Markup(figure_svg(figure, name))


def write_markdown(
    path: str | Path,
    *,
    runs: Sequence[Run],
    task_metric: TaskMetric,
    drift_metric: TaskMetric,
    baseline: str | None = None,
    figures: Sequence[tuple[str, str, Figure]] = (),
) -> None:
    """Write the report of a study as Markdown, with every figure as PNG beside it; missing folders are created.

    Args:
        path: The Markdown file to write.
        runs: The runs of the study.
        task_metric: The metric of the task: one for all tasks, or task to metric.
        drift_metric: The metric of how far the model moved from the pretrained one; likewise.
        baseline: The method to compare the others with; default: the first fine-tuned one.
        figures: More figures, each with a heading, which also names its file, and a caption.

    Raises:
        BALoraError: `task_metric` lacks a task, or `baseline` is not a fine-tuned method of the study.
    """
    path = Path(path)
    pictures: set[str] = set()

    def picture(name: str, figure: Figure, text: str) -> str:
        """Save the figure under an unused name and return the Markdown that shows it."""
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


VERSIONED_PACKAGES = ("balora", "torch", "transformers", "peft")


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that affects results."""
    return {"python": platform.python_version(), **{package: version(package) for package in VERSIONED_PACKAGES}}
