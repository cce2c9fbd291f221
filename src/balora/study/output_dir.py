"""The output folder: it belongs to one recipe, and only that recipe may resume in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from balora.data.columns import shortened
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import GROUPS, WORLDS
from balora.recipe.recipe import OF_THE_STUDY, default_settings
from balora.study.data_digests import check_digests, digests_comment
from balora.training.checkpoints import UNFINISHED
from balora.utils.distributed import barrier, is_main_process
from balora.utils.files import report_full_disk, write_text
from balora.utils.locks import LOCK_FILE, locked

RECIPE_FILE = "recipe.yaml"
#: Files that are no results; a process killed while it wrote its first file leaves a part of it.
BOOKKEEPING = (RECIPE_FILE, f"{RECIPE_FILE}.part", LOCK_FILE)
#: Settings that a study may change and still resume in its folder: which runs it has, and how they are run.
FREE = {*OF_THE_STUDY, "per_device_eval_batch_size"} - {"name", "seed"}


@contextmanager
def claimed(recipe: Recipe) -> Iterator[Path]:
    """Context manager: the recipe's output folder, made or resumed, recorded as this recipe's.

    If the recipe turns out to be wrong before anything is trained, the folder is removed again.

    Raises:
        BALoraError: If no folder is named, it cannot be created, it holds something else, another process holds its
            lock, or the disk is full.
    """
    directory = named_folder(recipe)
    with locked(directory) if is_main_process() else nullcontext():
        if is_main_process():
            digests = digests_comment(recipe)
            _check(recipe, digests, directory)
            with report_full_disk(directory):
                write_text(directory / RECIPE_FILE, recipe.to_yaml() + digests)
        barrier()
        try:
            with report_full_disk(directory):
                yield directory
        except BALoraError:
            if is_main_process() and not has_results(directory):
                _clear(directory)
            raise


def has_results(directory: Path) -> bool:
    """Return whether a run left anything in its folder that another run must not lose."""
    return any(
        path.is_file() and path.name not in BOOKKEEPING and UNFINISHED not in path.relative_to(directory).parts
        for path in directory.rglob("*")
    )


def _clear(directory: Path) -> None:
    """Delete what a run without results left, except the lock, which is held."""
    for path in directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def named_folder(recipe: Recipe) -> Path:
    """Return the recipe's output folder, existing or not.

    Raises:
        BALoraError: If it names none.
    """
    if recipe.output_dir is None:
        raise BALoraError("output_dir: missing; add --output_dir DIR")
    return Path(recipe.output_dir)


def _check(recipe: Recipe, digests: str, directory: Path) -> None:
    record = directory / RECIPE_FILE
    if record.exists():
        # A setting that did not exist yet when the folder was made had its default, a world's parameter likewise.
        try:
            recorded = yaml.safe_load(record.read_text(encoding="utf-8"))
            held = default_settings() | recorded
            worlds = {name: asdict(knobs()) | held[name] for name, knobs in WORLDS.items() if held[name]}
            held = _comparable(held | worlds)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise BALoraError(f"output_dir: {record} is damaged ({error}); choose another --output_dir") from error
        wanted = _comparable(asdict(recipe))
        differing = [key for key in held | wanted if held.get(key) != wanted.get(key) and _binds(key, held, wanted)]
        # Until something is trained, other settings may replace those that a run recorded, but not a user's recipe.
        replaceable = recorded.keys() == default_settings().keys() and not has_results(directory)
        if differing and not replaceable:
            differences = ", ".join(
                f"{key[:40]} ({shortened(held.get(key))} there, {shortened(wanted.get(key))} now)"
                for key in differing[:10]
            )
            raise BALoraError(
                f"output_dir: {directory} holds another run, which differs in {differences}; choose another "
                "--output_dir, or give the same settings to resume that run"
            )
        if not replaceable:
            check_digests(recipe, digests, record)
    # A process killed while it wrote its first file leaves a part of it.
    elif any(path.name not in BOOKKEEPING for path in directory.iterdir()):
        raise BALoraError(f"output_dir: {directory} holds files that no run of balora wrote; choose an empty folder")


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    # Through YAML, so that what was read back and what is at hand have the same types.
    plain = yaml.safe_load(yaml.safe_dump(settings))
    for key, value in list(plain.items()):
        if isinstance(value, dict):
            plain |= {f"{key}.{inner}": held for inner, held in plain.pop(key).items()}
    return {str(key): value for key, value in plain.items()}  # of a changed record it may be a number


def _binds(key: str, held: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Return whether the runs of a folder depend on a setting, and not only which runs there are."""
    setting, _, inner = key.partition(".")
    if setting in GROUPS and inner:
        return key in held and key in wanted
    return setting not in FREE
