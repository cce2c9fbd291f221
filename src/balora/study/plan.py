"""Plan the runs of a recipe's study: each a task, a method and a seed; and a sweep's points as methods."""

from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.methods import RUN_PRESETS
from balora.recipe.recipe import default_settings
from balora.recipe.rows import replaced_alternatives
from balora.report import PRETRAINED
from balora.report.figures.sweep import value_name
from balora.study.unused import refuse_unused
from balora.study.worlds import with_worlds

#: Share of the training rows that a study holds out if its recipe names nothing to measure quality on.
HELD_OUT = 0.1
#: Settings of the untouched model, which has no adapters of several tasks.
UNTRAINED = {"task_names": None, "alignment_weight": 0.0}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    Attributes:
        recipe: Its settings: the study's, the task's over them, the method's over those; named after the task.
        label: The method's name in tables; `recipe.method` is what it trains.
        seed: Its seed.
        folder: Its folder, relative to the study's.
    """

    recipe: Recipe
    label: str
    seed: int
    folder: Path

    def __str__(self) -> str:
        return f"{self.recipe.name}: {self.label}, seed {self.seed}"


def task_recipes(recipe: Recipe) -> list[Recipe]:
    """Return the recipe of each task: one, or those that `tasks` names, or one for each of its `worlds`.

    Raises:
        BALoraError: If a task's settings are wrong.
    """
    recipe = with_worlds(recipe)
    if not recipe.tasks:
        return [recipe]
    return [
        replace(recipe, **{"tasks": {}, "task": None, "name": name, **replaced_alternatives(own), **own})
        for name, own in recipe.tasks.items()
    ]


def with_held_out_rows(recipe: Recipe) -> Recipe:
    """Return a study's recipe with `HELD_OUT` of the training rows held out in tasks with nothing to evaluate on.

    Raises:
        BALoraError: If such a task streams its rows, of which none can be held out.
    """
    lacking = [task for task in task_recipes(recipe) if not _evaluated(task) and task.validation_share is None]
    for task in lacking:
        if task.streaming:
            raise BALoraError(
                f"validation_file: missing, so nothing would tell the methods of {task.name!r} apart, and streaming "
                "cannot hold out rows; name a validation_file, a perplexity_file or benchmarks"
            )
    if not recipe.tasks:
        return replace(recipe, validation_share=HELD_OUT) if lacking else recipe
    held_out = {task.name: {**recipe.tasks[task.name], "validation_share": HELD_OUT} for task in lacking}
    return replace(recipe, tasks={**recipe.tasks, **held_out})


def _evaluated(task: Recipe) -> bool:
    """Return whether a task names rows, texts or benchmarks to measure quality on."""
    named = (task.validation_file, task.dataset_name, task.world, task.reading_world, task.perplexity_file)
    rows = task.glue_task is not None and task.train_file is None  # GLUE's own development set
    return any(one is not None for one in named) or rows or bool(task.benchmarks)


def refuse_settings_of_one_run(recipe: Recipe) -> None:
    """Raise if a study's recipe sets the method or seed of `balora train` and leaves the study's own at its default.

    Raises:
        BALoraError: Naming both settings.
    """
    defaults = default_settings()
    for key, own, trains in (("method", "methods", "trains"), ("seed", "seeds", "trains with seeds")):
        value, used = getattr(recipe, key), getattr(recipe, own)
        if value != defaults[key] and value not in used and used == defaults[own]:
            raise BALoraError(
                f"{key}, {own}: `balora compare` {trains} {', '.join(map(str, used))}, not {value}; set {own} ({key} "
                "is `balora train`'s)"
            )


def single(recipe: Recipe) -> Recipe:
    """Return the recipe of the one task to train, with the settings of its method.

    Raises:
        BALoraError: If `task` does not name one of the recipe's tasks, or it has none.
    """
    recipe = with_worlds(recipe)
    if recipe.task is not None and not recipe.tasks:
        raise BALoraError(f"task: {recipe.task!r} has no effect without tasks; leave it out")
    tasks = {task.name: task for task in task_recipes(recipe)}
    if recipe.tasks and recipe.task not in tasks:
        raise BALoraError(f"task: {recipe.task!r} is not among the recipe's tasks; name one of {', '.join(tasks)}")
    task = tasks[recipe.task] if recipe.tasks else recipe
    return replace(task, **{"sweep": {}, **_settings_of(recipe, recipe.method)})


def plan(recipe: Recipe) -> list[PlannedRun]:
    """Plan all runs: the untouched model on each task, then every task and method, seed by seed.

    In this order the runs that are done at any time compare the methods fairly.

    Raises:
        BALoraError: If the settings of a task or a method are wrong, or no run uses one.
    """
    recipe = with_worlds(swept(recipe))
    tasks = task_recipes(recipe)
    order = [(task, PRETRAINED, recipe.seeds[0]) for task in tasks]
    order += [(task, method, seed) for seed in recipe.seeds for task in tasks for method in recipe.methods]
    runs = []
    for task, label, seed in order:
        own = _settings_of(recipe, label) if label != PRETRAINED else UNTRAINED
        inside = Path("runs") / task.name if recipe.tasks else Path("runs")
        runs.append(PlannedRun(replace(task, **own), label, seed, inside / f"{label}-seed{seed}"))
    refuse_unused([run.recipe for run in runs if run.label != PRETRAINED])
    return runs


def _settings_of(recipe: Recipe, label: str) -> dict[str, Any]:
    """Return the settings that a method's name stands for, over those of its preset."""
    own = {"method": label, **recipe.method_settings.get(label, {})}
    preset = RUN_PRESETS.get(own["method"])
    return own if preset is None else {**preset, **own, "method": preset["method"]}


def sweep_points(recipe: Recipe) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return each method and the values it is trained at, by label, in the order they run."""
    combinations = [dict(zip(recipe.sweep, values, strict=True)) for values in product(*recipe.sweep.values())]
    points = product(combinations, recipe.methods)
    return {_label(method, combination): (method, combination) for combination, method in points}


def _label(method: str, combination: dict[str, Any]) -> str:
    return " ".join([method, *(f"{key}={value_name(value)}" for key, value in combination.items())])


def swept(recipe: Recipe) -> Recipe:
    """Return the recipe with the points of its sweep as methods; unchanged without a sweep."""
    if not recipe.sweep:
        return recipe
    points = sweep_points(recipe)
    settings = {
        label: {"method": method, **recipe.method_settings.get(method, {}), **combination}
        for label, (method, combination) in points.items()
    }
    baseline = next((label for label, (method, _) in points.items() if method == recipe.baseline), None)
    return replace(recipe, sweep={}, methods=list(points), method_settings=settings, baseline=baseline)
