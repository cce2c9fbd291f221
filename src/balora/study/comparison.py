"""A study: every task, method and seed run in a process of its own, then one table and one page."""

from itertools import product
from pathlib import Path

from balora.data.glue import GLUE
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run, write_markdown, write_page, write_results
from balora.report.figures.sweep import sweep_figure
from balora.study.measures.answers import robustness_figures
from balora.study.measures.finished import FinishedRun
from balora.study.measures.geometry import geometry_figures
from balora.study.measures.hatecheck import case_figures
from balora.study.measures.noise import noise_figures
from balora.study.output_dir import claimed
from balora.study.plan import PlannedRun, plan, sweep_points, swept, task_recipes, with_held_out_rows
from balora.study.pool import run_in_processes, start_importing
from balora.study.prepare import prepare
from balora.study.rewriting import check_rewritable
from balora.study.run import RESULT_FILE, read_history, read_result
from balora.study.shared_warnings import once_for_task
from balora.study.student import check_fit
from balora.study.terminal import ProgressCallback, console
from balora.study.trainers import check_steps, described_rows
from balora.study.worlds import world_figures

#: Axes of the report's trade-off figure if the recipe names none: the first metric that was measured.
TASK_METRICS = ("task_accuracy", "accuracy", "pearson", "f1", "eval_loss")
DRIFT_METRICS = ("perplexity", "kl_to_base", "mse_to_base")
SWEEP_CAPTION = "Means over seeds, with a band of one standard deviation."


def compare(recipe: Recipe) -> list[Run]:
    """Run what is not finished; write `results.json` after each run and the report at the end.

    Args:
        recipe: With `methods`, `seeds` and `output_dir`. The untouched model is always measured too. Of a task that
            names nothing to evaluate on, a share of the training rows is held out (`balora.study.plan.HELD_OUT`).

    Returns:
        All runs, the untouched model's first.

    Raises:
        BALoraError: If the recipe or a run is wrong; finished runs stay.
        Interrupted: On Ctrl-C or SIGTERM, after the current runs are saved.
    """
    recipe = with_held_out_rows(recipe)
    with claimed(recipe) as directory:
        planned = plan(recipe)
        if not all((directory / one.folder / RESULT_FILE).exists() for one in planned):
            start_importing()  # while the recipe is checked
        _check(recipe, planned)
        numbers = {one.folder: number for number, one in enumerate(planned, start=1)}

        def announce(one: PlannedRun) -> None:
            console.print(f"[{numbers[one.folder]}/{len(planned)}] {one}", style="dim", markup=False)

        def write_finished(_: PlannedRun | None = None) -> list[PlannedRun]:
            finished = [one for one in planned if (directory / one.folder / RESULT_FILE).exists()]
            if finished:
                write_results(directory / "results.json", [read_result(directory / one.folder) for one in finished])
            return finished

        finished = write_finished()
        waiting = [one for one in planned if one not in finished]
        run_in_processes(waiting, directory, recipe.jobs, announce, write_finished)
        runs = [read_result(directory / one.folder) for one in planned]
        write_report(recipe, planned, runs, directory)
    return runs


def _check(recipe: Recipe, planned: list[PlannedRun]) -> None:
    """Check models, data and methods before the first process starts."""
    for task in task_recipes(recipe):
        with once_for_task(task.name):
            prepared = prepare(task, callbacks=(ProgressCallback("pretraining the world's model"),))
        check_steps(prepared)
        console.print(described_rows(prepared), style="dim", markup=False, soft_wrap=True)
        for one in planned:
            if one.recipe.name == task.name and one.seed == recipe.seeds[0] and one.label != PRETRAINED:
                check_fit(prepared.empty_model(), one.recipe)
                if one.recipe.rewrite_answers:
                    check_rewritable(prepared.train)


def task_metrics(recipe: Recipe, runs: list[Run]) -> dict[str, str]:
    """Return each task's main metric: the recipe's, GLUE's, or the first of `TASK_METRICS` that was measured."""
    return {
        task.name: task.task_metric
        or (GLUE[task.glue_task].metric if task.glue_task else _first_measured(TASK_METRICS, task.name, runs))
        for task in task_recipes(recipe)
    }


def write_report(recipe: Recipe, planned: list[PlannedRun], runs: list[Run], directory: Path) -> None:
    """Write `report.html`, and `summary.md` with its figures, of all runs."""
    tasks = task_recipes(recipe)
    finished = [FinishedRun(one, run, directory / one.folder) for one, run in zip(planned, runs, strict=True)]
    shown = {
        "runs": runs,
        "task_metric": task_metrics(recipe, runs),
        "drift_metric": {
            task.name: task.drift_metric or _first_measured(DRIFT_METRICS, task.name, runs) for task in tasks
        },
        "baseline": swept(recipe).baseline,
        "figures": [
            figure
            for draw in (geometry_figures, robustness_figures, noise_figures, case_figures)
            for figure in draw(finished)
        ],
    }
    base = tasks[0].name
    inherited = world_figures(recipe, runs, shown["task_metric"][base], shown["drift_metric"][base])
    shown["figures"] = [*inherited, *shown["figures"]]
    points = sweep_points(recipe) if recipe.sweep else {}
    for task, key in product([task.name for task in tasks], recipe.sweep):
        metrics = [shown["task_metric"][task], shown["drift_metric"][task]]
        figure = sweep_figure([run for run in runs if run.task == task], points, key, metrics)
        shown["figures"].append((f"{task} by {key}", SWEEP_CAPTION, figure))
    histories = {done.run.id: read_history(done.folder) for done in finished}
    write_page(
        directory / "report.html",
        title=recipe.name,
        histories={name: rows for name, rows in histories.items() if rows},
        recipe_text=recipe.to_yaml(),
        **shown,
    )
    write_markdown(directory / "summary.md", **shown)


def _first_measured(metrics: tuple[str, ...], task: str, runs: list[Run]) -> str:
    measured = {name for run in runs if run.task == task for name in run.metrics}
    return next((name for name in metrics if name in measured), metrics[0])
