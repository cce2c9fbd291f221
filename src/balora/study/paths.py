"""Paths in a recipe, as `balora.data.expand_path` has them, and `world:NAME` for a file of its controlled world."""

from dataclasses import replace

from balora.data import expand_path
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.world import World

#: Settings that are paths.
PATHS = (
    "model_name_or_path",
    "glue_dir",
    "train_file",
    "validation_file",
    "mismatched_file",
    "perplexity_file",
    "anchor_file",
    "counterfactual_words",
    "chat_template_path",
    "sentence_encoder",
)
WORLD = "world:"


def with_paths(recipe: Recipe, world: World | None) -> Recipe:
    """The recipe with its own paths and its auxiliary task's expanded.

    Args:
        recipe: The recipe.
        world: The controlled world that it asks for, which names no folder that one could write into a recipe.

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
            f"{setting}: {value} is a file of the controlled world, and the recipe has none; set `world`"
        )
    file = world.directory / value.removeprefix(WORLD)
    if not file.is_file():
        names = ", ".join(sorted(path.name for path in world.directory.glob("*.jsonl")))
        raise BALoraError(f"{setting}: {value} is no file of the controlled world; there are {names}")
    return str(file)
