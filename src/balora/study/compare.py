"""Several tasks, methods and seeds, each cell in a process of its own, then one table and one page."""

from itertools import product
from pathlib import Path

from balora.data.glue import GLUE
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run, write_markdown, write_page, write_results
from balora.report.sweep import sweep_figure
from balora.study.answers import robustness_figures
from balora.study.artifacts import Finished
from balora.study.geometry import geometry_figures
from balora.study.hatecheck import case_figures
from balora.study.model_and_data import prepare
from balora.study.noise import noise_figures
from balora.study.output_dir import claimed
from balora.study.plan import Cell, plan, task_recipes
from balora.study.pool import run_in_processes
from balora.study.progress import ProgressCallback, console
from balora.study.run import RESULT_FILE, history_of, result_of
from balora.study.student import check_fit
from balora.study.sweep import sweep_points, swept
from balora.study.worlds import world_figures

#: Axes of the report's picture where the recipe names none: the first that was measured.
TASK_METRICS = ("task_accuracy", "accuracy", "pearson", "f1", "eval_loss")
SWEEP_CAPTION = "Means over seeds, with a band of one standard deviation."
DRIFT_METRICS = ("perplexity", "kl_to_base", "mse_to_base")


def compare(recipe: Recipe) -> list[Run]:
    """Run every cell that is not done yet; write `results.json` after each and the report at the end.

    Args:
        recipe: With `methods`, `seeds` and `output_dir`. The untouched model is always measured too.

    Returns:
        All runs, the untouched model's first.

    Raises:
        BALoraError: If the recipe or a cell of it is wrong; finished cells stay.
        Interrupted: On Ctrl-C or SIGTERM, after the running cell saved.
    """
    with claimed(recipe) as directory:
        cells = plan(recipe)
        _check(recipe, cells)
        numbers = {cell.folder: number for number, cell in enumerate(cells, start=1)}

        def announce(cell: Cell) -> None:
            console.print(f"[{numbers[cell.folder]}/{len(cells)}] {cell}", style="dim", markup=False)

        def note(_: Cell | None = None) -> list[Cell]:
            finished = [cell for cell in cells if (directory / cell.folder / RESULT_FILE).exists()]
            write_results(directory / "results.json", [result_of(directory / cell.folder) for cell in finished])
            return finished

        finished = note()
        waiting = [cell for cell in cells if cell not in finished]
        run_in_processes(waiting, directory, recipe.jobs, announce, note)
        runs = [result_of(directory / cell.folder) for cell in cells]
        write_report(recipe, cells, runs, directory)
    return runs


def _check(recipe: Recipe, cells: list[Cell]) -> None:
    """Whatever is wrong with models, data or methods shows here, before the first process is started."""
    for task in task_recipes(recipe):
        prepared = prepare(task, callbacks=(ProgressCallback("pretraining the world's model"),))
        for cell in cells:
            if cell.recipe.name == task.name and cell.seed == recipe.seeds[0] and cell.label != PRETRAINED:
                check_fit(prepared.empty_model(), cell.recipe)


def task_metrics(recipe: Recipe, runs: list[Run]) -> dict[str, str]:
    """By task, the metric that tells how well it was learned: the recipe's, GLUE's, or the first that was measured."""
    return {
        task.name: task.task_metric
        or (GLUE[task.glue_task].metric if task.glue_task else _first_measured(TASK_METRICS, task.name, runs))
        for task in task_recipes(recipe)
    }


def write_report(recipe: Recipe, cells: list[Cell], runs: list[Run], directory: Path) -> None:
    """Write `report.html`, and `summary.md` with its pictures, of all cells' runs."""
    tasks = task_recipes(recipe)
    finished = [Finished(cell, run, directory / cell.folder) for cell, run in zip(cells, runs, strict=True)]
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
    histories = {done.run.id: history_of(done.folder) for done in finished}
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
