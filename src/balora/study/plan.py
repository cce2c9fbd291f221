"""What a recipe's study consists of: its cells, each a task, a method and a seed, with the settings it runs under."""

from dataclasses import dataclass, replace
from pathlib import Path

from balora.recipe import Recipe
from balora.report import PRETRAINED


@dataclass(frozen=True)
class Cell:
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
    """The recipe of each task: one, or those that `tasks` names.

    Raises:
        BALoraError: If a task's settings make no recipe.
    """
    if not recipe.tasks:
        return [recipe]
    return [replace(recipe, **{"tasks": {}, "name": name, **own}) for name, own in recipe.tasks.items()]


def plan(recipe: Recipe) -> list[Cell]:
    """All cells: the untouched model on each task, then by seed every task and method, so that a part is a fair part.

    Raises:
        BALoraError: If the settings of a task or a method make no recipe.
    """
    tasks = task_recipes(recipe)
    order = [(task, PRETRAINED, recipe.seeds[0]) for task in tasks]
    order += [(task, method, seed) for seed in recipe.seeds for task in tasks for method in recipe.methods]
    cells = []
    for task, label, seed in order:
        own = {"method": label, **recipe.method_settings.get(label, {})} if label != PRETRAINED else {}
        inside = Path("runs") / task.name if recipe.tasks else Path("runs")
        cells.append(Cell(replace(task, **own), label, seed, inside / f"{label}-seed{seed}"))
    return cells
