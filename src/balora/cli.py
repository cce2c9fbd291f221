"""Command line: `balora train`, `compare`, `sweep`, `evaluate`, `audit`, `calibrate` and `quickstart`."""

import os
import sys
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balora.recipe import Recipe
    from balora.report import Run

USAGE = """balora: low-rank fine-tuning that keeps what the model knew

  balora train RECIPE [--key value …]      fine-tune with one method and one seed
  balora compare RECIPE [--key value …]    compare tasks × methods × seeds in one table and one page
  balora sweep RECIPE [--key value …]      compare at every combination of settings' values, or in several worlds
  balora evaluate RECIPE --adapter DIR     measure a saved adapter on the recipe's evaluation sets and benchmarks
  balora audit MODEL [ADAPTER]             compare any fine-tuned model with its base model, on one page
  balora calibrate RECIPE [--key value …]  find the regularizers' weights for a task and write them to a file
  balora quickstart [--key value …]        compare methods on a small synthetic world, in minutes, on a CPU

A recipe is a YAML file of settings, each of which can also be given on the command line. `balora COMMAND --help`
explains them. Run the same command again to resume it. `balora --version` prints the version, and --traceback shows
where in the code an error occurred.
"""

# Importing torch and its libraries takes seconds, so each command imports what it needs.


def main(argv: list[str] | None = None) -> int:
    """Run the program and return the exit status.

    Returns:
        0, 2 for a user's mistake, 1 for an unexpected error, 128 + signal when stopped.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "--traceback" in argv:
        argv = [argument for argument in argv if argument != "--traceback"]
        os.environ["BALORA_TRACEBACK"] = "1"  # read by the processes of a study too
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if argv[0] == "--version":
        print(f"balora {version('balora')}")
        return 0
    commands = {
        "train": train,
        "compare": compare,
        "sweep": sweep,
        "evaluate": evaluate,
        "audit": audit,
        "calibrate": calibrate,
        "quickstart": quickstart,
    }
    name, arguments = argv[0], argv[1:]
    if name not in commands:
        print(f"balora: error: unknown command {name!r}; use one of {', '.join(commands)}", file=sys.stderr)
        return 2
    try:
        from balora.study.terminal import quiet_libraries, report_errors
    except ModuleNotFoundError as error:
        install = "pip install 'balora[program]'"
        print(f"balora: error: the program needs {error.name}, which is not installed: {install}", file=sys.stderr)
        return 2
    quiet_libraries()

    def run_command() -> None:
        from balora.study.launch import refuse_distributed

        if name != "train":
            refuse_distributed(name)
        commands[name](arguments)

    return report_errors(run_command)


def train(arguments: list[str]) -> None:
    """Train and measure one method with one seed."""
    from balora.recipe.parse import parse
    from balora.study.launch import distributed_run
    from balora.study.output_dir import claimed
    from balora.study.plan import single
    from balora.study.run import train_and_measure
    from balora.study.unused import refuse_unused
    from balora.utils.distributed import is_main_process

    recipe, _ = parse("train", arguments)
    task = single(recipe)
    refuse_unused([task])
    with distributed_run(task), claimed(recipe) as directory:
        run = train_and_measure(task, recipe.method, recipe.seed, directory)
    if is_main_process():
        show(task, [run], f"adapter: {recipe.output_dir}")


def compare(arguments: list[str], command: str = "compare") -> None:
    """Run a study of tasks × methods × seeds; `sweep` varies settings too."""
    from balora.errors import BALoraError
    from balora.recipe.parse import parse
    from balora.study.comparison import compare as run_study
    from balora.study.plan import refuse_settings_of_one_run

    recipe, _ = parse(command, arguments)
    refuse_settings_of_one_run(recipe)
    if command == "sweep" and not (recipe.sweep or recipe.worlds):
        raise BALoraError(
            "sweep: missing; give settings and their values, such as `sweep: {r: [1, 8, 64]}`, or worlds"
        )
    show(recipe, run_study(recipe), f"report: {Path(recipe.output_dir) / 'report.html'}")


def sweep(arguments: list[str]) -> None:
    """Run a study at every combination of the values in the recipe's `sweep`, or in its `worlds`."""
    compare(arguments, "sweep")


def quickstart(arguments: list[str]) -> None:
    """Run the study of the packaged recipe."""
    packaged = files("balora") / "recipes" / "quickstart.yaml"
    compare([str(packaged), "--output_dir=outputs/quickstart", *arguments], "quickstart")


def evaluate(arguments: list[str]) -> None:
    """Measure a saved adapter."""
    from rich.console import Console

    from balora.recipe.parse import parse
    from balora.report.tables import metrics_grid, rich_grid
    from balora.study.evaluate import EvaluationSettings, evaluation_folder
    from balora.study.evaluate import evaluate as run_evaluation
    from balora.study.plan import single

    recipe, settings = parse("evaluate", arguments, EvaluationSettings)
    recipe = single(recipe)
    directory = evaluation_folder(recipe, settings)
    run = run_evaluation(recipe, settings, directory)
    Console().print(rich_grid(metrics_grid(run), run.task))
    Console().print(f"result: {directory / 'result.json'}", highlight=False, soft_wrap=True)


def audit(arguments: list[str]) -> None:
    """Compare a fine-tuned model with its base model."""
    from rich.console import Console

    from balora.audit import audit as run_audit
    from balora.audit.settings import parse_audit
    from balora.audit.terminal import audit_table
    from balora.study.terminal import console

    settings = parse_audit(arguments)
    figures = run_audit(settings, lambda part: console.print(f"audit: {part}", highlight=False))
    Console().print(audit_table(figures))
    Console().print(f"page: {Path(settings.output_dir) / 'audit.html'}", highlight=False, soft_wrap=True)


def calibrate(arguments: list[str]) -> None:
    """Find the regularizers' weights for a task and write them into a copy of the recipe."""
    from rich.console import Console

    from balora.errors import BALoraError
    from balora.recipe.parse import parse
    from balora.report.tables import calibration_table
    from balora.study import calibrate as calibration_steps

    recipe, settings = parse("calibrate", arguments, calibration_steps.CalibrationSettings)
    if not arguments or arguments[0].startswith("-"):
        raise BALoraError("recipe: missing; `balora calibrate RECIPE` writes the weights to a file beside it")
    source = Path(arguments[0])
    target = calibration_steps.calibrated_recipe(source, settings)
    with TemporaryDirectory(prefix="balora-") as scratch:
        calibration = calibration_steps.measure_gradients(recipe, settings, Path(scratch))
    Console().print(calibration_table(calibration))
    factor = settings.factors[0]
    if len(settings.factors) > 1:
        factor, runs = calibration_steps.search_factor(recipe, calibration, settings.factors)
        show(recipe, runs, calibration_steps.explain_choice(recipe, runs, settings.factors, factor))
    calibration_steps.write_calibrated(source, target, calibration.settings(factor))
    Console().print(f"next: balora train {source} --recipe {target}", highlight=False, soft_wrap=True)


def show(recipe: "Recipe", runs: list["Run"], where: str) -> None:
    """Print the table of a task, or of the suite if there are several, and where the rest is."""
    from rich.console import Console

    from balora.report import rich_grid, rich_table, suite_grid, summarize
    from balora.study.comparison import task_metrics

    console = Console()
    summaries = summarize(runs)
    if len(summaries) > 1:
        console.print(rich_grid(suite_grid(runs, task_metrics(recipe, runs)), recipe.name))
    else:
        console.print(rich_table(summaries[0]))
    console.print(where, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
