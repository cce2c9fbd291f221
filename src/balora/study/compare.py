"""Several methods and seeds on the same work, each cell in a process of its own, then one table and one page."""

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import datasets
import transformers

from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run, write_markdown, write_page, write_results
from balora.study.cell import RESULT_FILE, Interrupted, history_of, result_of, run_cell
from balora.study.progress import ProgressCallback, console
from balora.study.run_dir import claimed
from balora.study.workload import prepare

#: Axes of the report's picture where the recipe names none: the first that was measured.
TASK_METRICS = ("task_accuracy", "accuracy", "pearson", "eval_loss")
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
        # What is wrong with the model or the data shows here, before the first process is started.
        prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
        cells = [(PRETRAINED, recipe.seeds[0])] + [(m, s) for s in recipe.seeds for m in recipe.methods]
        runs, histories = [], {}
        for number, (method, seed) in enumerate(cells, start=1):
            cell_directory = directory / "runs" / f"{method}-seed{seed}"
            if not (cell_directory / RESULT_FILE).exists():
                console.print(f"[{number}/{len(cells)}] {method}, seed {seed}", style="dim", markup=False)
                _in_own_process(recipe, method, seed, cell_directory)
            run = result_of(cell_directory)
            runs.append(run)
            histories[run.id] = history_of(cell_directory)
            write_results(directory / "results.json", runs)
        write_report(recipe, runs, histories, directory)
    return runs


def write_report(recipe: Recipe, runs: list[Run], histories: dict[str, list[dict]], directory: Path) -> None:
    """Write `report.html`, and `summary.md` with its picture."""
    measured = {name for run in runs for name in run.metrics}
    axes = {
        "task_metric": recipe.task_metric or next((m for m in TASK_METRICS if m in measured), TASK_METRICS[0]),
        "drift_metric": recipe.drift_metric or next((m for m in DRIFT_METRICS if m in measured), DRIFT_METRICS[0]),
    }
    write_page(
        directory / "report.html",
        title=recipe.name,
        runs=runs,
        histories={name: rows for name, rows in histories.items() if rows},
        recipe_text=recipe.to_yaml(),
        **axes,
    )
    write_markdown(directory / "summary.md", runs=runs, **axes)


def _in_own_process(recipe: Recipe, method: str, seed: int, directory: Path) -> None:
    """A fresh process a cell, so that its peak memory is its own and nothing leaks into the next.

    The child is in a process group of its own and hears of a signal from here, once, whoever sent it.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_cell_process, args=(recipe, method, seed, directory))
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        os.kill(process.pid, number)

    process.start()
    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process.join()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0], 0)
    if process.exitcode:
        raise BALoraError(f"{method}, seed {seed} failed (see above); finished runs are kept in {directory.parent}")


def _cell_process(recipe: Recipe, method: str, seed: int, directory: Path) -> None:
    os.setpgrp()
    quiet_libraries()
    sys.exit(report_errors(lambda: run_cell(recipe, method, seed, directory)))


def quiet_libraries() -> None:
    """Keep libraries' notices and bars off the terminal; errors and our own warnings stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)


def report_errors(action: Callable[[], object]) -> int:
    """Run an action of the program and say in one line what went wrong; the status to exit with."""
    try:
        action()
    except BALoraError as error:
        console.print(f"balora: error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except Interrupted as stop:
        console.print(f"balora: {stop}; the same command goes on from there", markup=False, highlight=False)
        return 128 + stop.number
    except KeyboardInterrupt:
        console.print("balora: stopped before there was anything to save; the same command begins again")
        return 128 + signal.SIGINT
    return 0
