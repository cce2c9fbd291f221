"""The study as one HTML file to mail, archive and open offline: no scripts, no network, figures inside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from balora.report.curves import History, loss_figure
from balora.report.glossary import format_value, known
from balora.report.results import PRETRAINED, Run
from balora.report.scatter import tradeoff_figure
from balora.report.sentence import baseline_of, comparisons, headline
from balora.report.style import figure_svg, method_styles
from balora.report.suite import suite_grid
from balora.report.suite_figure import SUITE_CAPTION, suite_figure
from balora.report.summary import TaskSummary, summarize
from balora.report.table import COST_COLUMNS, summary_grid
from balora.report.task_metric import TaskMetric, metric_for
from balora.report.versions import versions


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
    """Write the report of a study; missing folders are made.

    A study of several tasks begins with what they say together, and has a section for each.

    Args:
        path: The HTML file to write.
        title: Title of the page.
        runs: The runs of the study.
        histories: `Run.id` to the rows of the Trainer's `log_history`; may lack runs or be empty.
        recipe_text: The recipe the study was run from, shown as it is.
        task_metric: The metric that tells how well the task was learned; task to metric where they differ.
        drift_metric: The metric that tells how much of the original model was lost or kept; likewise.
        baseline: The method that the others are compared with; the first fine-tuned one by default.
        notes: Remarks and caveats, a paragraph each, shown right below the headline.
        figures: More figures, each with a heading and a caption.

    Raises:
        BALoraError: `task_metric` lacks a task, or `baseline` is no fine-tuned method of the study.
    """
    # Everything given by the user is escaped; only the figures, which escape their own text, go in as markup.
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
