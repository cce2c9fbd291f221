"""Expand the paths of a recipe: the user's home, files inside Python packages, files of a controlled world."""

from dataclasses import replace
from typing import get_type_hints

from balora.data import expand_path
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.paths import is_path
from balora.world import World

#: Settings that are paths, or may be: counterfactual_words and swapped_rows name a list of balora's or a file.
PATHS = (
    *(name for name, hint in get_type_hints(Recipe, include_extras=True).items() if is_path(hint)),
    "counterfactual_words",
    "swapped_rows",
)
WORLD = "world:"


def with_paths(recipe: Recipe, world: World | None) -> Recipe:
    """Return the recipe with its own paths and its auxiliary task's expanded.

    Args:
        recipe: The recipe.
        world: The controlled world that it asks for; its folder is not known before it is built.

    Raises:
        BALoraError: If a path cannot be expanded.
    """
    own = {key: _expanded(key, value, world) for key in PATHS if (value := getattr(recipe, key))}
    auxiliary = {
        key: _expanded(f"auxiliary: {key}", value, world) if key in PATHS else value
        for key, value in recipe.auxiliary.items()
    }
    return replace(recipe, **own, auxiliary=auxiliary)


def _expanded(setting: str, value: str, world: World | None) -> str:
    if not value.startswith(WORLD):
        return expand_path(value)
    if world is None:
        raise BALoraError(
            f"{setting}: {value} is a file of the controlled world, which the recipe does not have; set `world`"
        )
    file = world.directory / value.removeprefix(WORLD)
    if not file.is_file():
        names = ", ".join(sorted(path.name for path in world.directory.glob("*.jsonl")))
        raise BALoraError(f"{setting}: {value} is not a file of the controlled world; there are {names}")
    return str(file)
