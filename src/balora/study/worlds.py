"""Studies of inheritance: worlds that differ in one parameter of pretraining each, and the figures of them.

Each world is a task of the study (`balora.study.plan`), so that its pretrained model is measured too and the methods
are compared with it. Architecture, data order and fine-tuning rows are those of the base world throughout, since each
parameter has a random stream of its own.
"""

from dataclasses import replace

from matplotlib.figure import Figure

from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import Run
from balora.report.figures.inheritance import Axis, inheritance_figure, pareto_figure
from balora.world import WorldConfig

#: Task in the world with the recipe's own parameters.
BASE = "base"
#: Flaw that each parameter of pretraining plants in a model, as `balora.world.measure_world` names it.
FLAWS = {
    "pronoun_skew": "skew",
    "pretraining_noise": "noise_share",
    "pretraining_imbalance": "fact_recall_gap",
}
INHERITANCE_CAPTION = (
    "The flaw planted in pretraining, and the flaw that is measured after fine-tuning: a panel for each knob, "
    "the others at their base. The dashed line is the pretrained models': a method on it passes on what it was given, "
    "one below it mends, one above it adds. Means over seeds, with a band of one standard deviation."
)
PARETO_CAPTION = (
    "In the base world: what was learned against what was lost and what was kept of the skew. A small mark is a seed, "
    "a large one the mean of a method; it is filled where no other method's means are at least as good in all three "
    "and better in one. The steps join those that are so in their panel alone; the dashed line is the pretrained one."
)


def worlds_of(recipe: Recipe) -> dict[str, WorldConfig]:
    """Return the worlds of a recipe that has `worlds`, by task: the base, then parameter by parameter.

    Raises:
        BALoraError: If a value is out of the parameter's range.
    """
    worlds = {BASE: recipe.world}
    for knob, values in recipe.worlds.items():
        try:
            others = {name: replace(recipe.world, **{knob: value}) for value, name in _levels(recipe, knob, values)}
        except BALoraError as error:
            raise BALoraError(f"worlds: {error}") from error
        worlds |= {name: world for name, world in others.items() if name != BASE}
    return worlds


def with_worlds(recipe: Recipe) -> Recipe:
    """Return the recipe with its worlds as tasks; unchanged without worlds."""
    if not recipe.worlds:
        return recipe
    return replace(recipe, worlds={}, tasks={name: {"world": world} for name, world in worlds_of(recipe).items()})


def world_figures(
    recipe: Recipe, runs: list[Run], task_metric: str, drift_metric: str
) -> list[tuple[str, str, Figure]]:
    """Draw planted against inherited flaws, and the trade-off in the base world; empty without worlds.

    Args:
        recipe: The study's.
        runs: All of them.
        task_metric: Metric of what was learned.
        drift_metric: Metric of what was lost, and the flaw of a parameter that `FLAWS` does not list.

    Returns:
        Heading, caption and figure of each.
    """
    if not recipe.worlds:
        return []
    of_task: dict[str, list[Run]] = {}
    for run in runs:
        of_task.setdefault(run.task, []).append(run)
    axes = []
    for knob, values in recipe.worlds.items():
        levels = dict(sorted({value: of_task[name] for value, name in _levels(recipe, knob, values)}.items()))
        axes.append(Axis(knob, FLAWS.get(knob, drift_metric), levels))
    figures = [("what is inherited", INHERITANCE_CAPTION, inheritance_figure(axes))]
    pareto = pareto_figure(of_task[BASE], task_metric, (drift_metric, "skew"))
    if pareto is not None:
        figures.append((f"{task_metric} against {drift_metric} and skew", PARETO_CAPTION, pareto))
    return figures


def _levels(recipe: Recipe, knob: str, values: list[float]) -> list[tuple[float, str]]:
    """Return each value of a parameter with the task of its world, the base's own value first."""
    own = getattr(recipe.world, knob)
    return [(own, BASE), *((value, f"{knob}={value}") for value in values if value != own)]
