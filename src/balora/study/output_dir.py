"""The output folder: it belongs to one recipe, and only that recipe may go on in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import yaml

from balora.data.columns import shortened
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import WORLDS, refuse_endless
from balora.utils.distributed import barrier, is_main_process
from balora.utils.files import report_full_disk, write_text

RECIPE_FILE = "recipe.yaml"
#: Settings that say which runs a study has and how they are run: a study may grow.
FREE = ("output_dir", "methods", "baseline", "seeds", "jobs", "tasks", "task", "method_settings")
GROUPS = ("tasks.", "method_settings.")
#: The same, by what they vary.
VARIED = ("sweep", "worlds")


@contextmanager
def claimed(recipe: Recipe) -> Iterator[Path]:
    """The recipe's output folder, new, or as the same recipe left it, perhaps with fewer methods, seeds or tasks.

    A mistake that shows before anything was trained leaves no folder behind, so that the mended command finds it free.

    Raises:
        BALoraError: If no folder is named, it holds something else, or the disk is full.
    """
    directory = _check(recipe) if is_main_process() else named_folder(recipe)
    if is_main_process():
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / RECIPE_FILE, recipe.to_yaml())
    barrier()
    try:
        with report_full_disk(directory):
            yield directory
    except BALoraError:
        if is_main_process() and not any(path.is_file() and path.name != RECIPE_FILE for path in directory.rglob("*")):
            shutil.rmtree(directory)
        raise


def named_folder(recipe: Recipe) -> Path:
    """The recipe's output folder, there or not.

    Raises:
        BALoraError: If it names none.
    """
    if recipe.output_dir is None:
        raise BALoraError("output_dir: missing; add --output_dir DIR")
    return Path(recipe.output_dir)


def _check(recipe: Recipe) -> Path:
    directory = named_folder(recipe)
    record = directory / RECIPE_FILE
    if directory.exists() and not directory.is_dir():
        raise BALoraError(f"output_dir: {directory} is a file; name a folder")
    if record.exists():
        # A setting, or a world's knob, that was not there when the folder was begun had its default.
        try:
            held = _defaults() | refuse_endless(yaml.safe_load(record.read_text(encoding="utf-8")))
            worlds = {name: asdict(knobs()) | held[name] for name, knobs in WORLDS.items() if held[name]}
            held = _comparable(held | worlds)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise BALoraError(f"output_dir: {record} is damaged ({error}); choose another --output_dir") from error
        wanted = _comparable(asdict(recipe))
        differing = [key for key in held | wanted if held.get(key) != wanted.get(key) and _binds(key, held, wanted)]
        if differing:
            differences = ", ".join(
                f"{key[:40]} ({shortened(held.get(key))} there, {shortened(wanted.get(key))} now)"
                for key in differing[:10]
            )
            raise BALoraError(
                f"output_dir: {directory} holds another run, which differs in {differences}; choose another "
                "--output_dir, or give the same settings to go on with that run"
            )
    # A process killed at its very first file leaves a part of that.
    elif directory.exists() and any(path.name != f"{RECIPE_FILE}.part" for path in directory.iterdir()):
        raise BALoraError(f"output_dir: {directory} holds files that are no run of balora; choose an empty folder")
    return directory


def _defaults() -> dict[str, Any]:
    return {f.name: f.default_factory() if f.default is MISSING else f.default for f in fields(Recipe)}


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    # Through YAML, so that what was read back and what is at hand have the same types.
    plain = yaml.safe_load(yaml.safe_dump(settings))
    for key, value in list(plain.items()):
        if isinstance(value, dict):
            plain |= {f"{key}.{inner}": held for inner, held in plain.pop(key).items()}
    return {str(key): value for key, value in plain.items()}  # of a changed record it may be a number


def _binds(key: str, held: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether runs that are there already depend on a setting: not on which others there will be."""
    if key.startswith(GROUPS):
        return key in held and key in wanted
    return key not in FREE and not key.startswith(VARIED)
