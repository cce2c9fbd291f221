"""Digests of a recipe's local files, so that a folder is resumed only with the same content under the same names."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from balora.data import expand_path
from balora.data.glue import GLUE, glue_files
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.study.paths import PATHS, WORLD

#: Beginning of the comment in a recorded recipe that holds the digests.
COMMENT = "# Digests of its files: "
#: Files of a model's folder that determine its weights and its tokens.
MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".model", ".txt", ".jinja")
BLOCK, BLOCKS = 2**20, 256


def digests_comment(recipe: Recipe) -> str:
    """Return a line to write below the recorded recipe, with a digest of each local file that it names."""
    found = {setting: _digest(path) for setting, path in _local_files(asdict(recipe))}
    return f"{COMMENT}{json.dumps(found)}\n"


def check_digests(recipe: Recipe, comment: str, record: Path) -> None:
    """Compare a recipe's files with those that a recorded recipe was run on; a file not recorded is not compared.

    Args:
        recipe: The settings.
        comment: From `digests_comment`, so that the files are read once.
        record: The recorded recipe.

    Raises:
        BALoraError: If the content of a file has changed.
    """
    lines = [line for line in record.read_text(encoding="utf-8").splitlines() if line.startswith(COMMENT)]
    if not lines:
        return  # recorded before there were digests
    try:
        recorded = dict(json.loads(lines[-1].removeprefix(COMMENT)))
    except (ValueError, TypeError, RecursionError) as error:
        raise BALoraError(f"output_dir: {record} is damaged ({error}); choose another --output_dir") from error
    for setting, digest in json.loads(comment.removeprefix(COMMENT)).items():
        if recorded.get(setting, digest) != digest:
            path = dict(_local_files(asdict(recipe)))[setting]
            raise BALoraError(
                f"output_dir: {record.parent} holds a run with other content of {setting} ({path} has changed since); "
                "choose another --output_dir, or restore the file to resume that run"
            )


def _local_files(settings: dict[str, Any], where: str = "", glue_dir: str | None = None) -> Iterator[tuple[str, Path]]:
    """Yield each setting that names an existing file or folder, such as `tasks.a.train_file`, and the path."""
    glue_dir = settings.get("glue_dir") or glue_dir
    for key, value in settings.items():
        name = f"{where}{key}"
        if key == "glue_task" and value in GLUE and glue_dir:
            for file, path in glue_files(value, glue_dir).items():
                yield from _existing(f"{name}.{file}", path)
        elif (key in PATHS and key != "glue_dir") or ".benchmarks." in f".{name}":
            for one in value if isinstance(value, list) else [value]:
                yield from _existing(name, one)
        if isinstance(value, dict):
            yield from _local_files(value, f"{name}.", glue_dir)


def _existing(name: str, value: Any) -> Iterator[tuple[str, Path]]:
    if not isinstance(value, str) or not value or value.startswith(WORLD):
        return
    try:
        path = Path(expand_path(value))
        if path.exists():
            yield name, path
    except (BALoraError, OSError, ValueError):
        return  # an error when it is read


def _digest(path: Path) -> str:
    """Return a hex digest of a file, or of a model's files in a folder.

    Of a file above 256 MiB its size and 256 blocks of 1 MiB are read, evenly spaced.
    """
    digest = hashlib.blake2b(digest_size=16)
    inside = sorted(file for file in path.iterdir() if file.suffix in MODEL_SUFFIXES) if path.is_dir() else [path]
    for file in inside:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size} ".encode())
        with file.open("rb") as content:
            for block in range(min(BLOCKS, -(-size // BLOCK))):
                content.seek(block * max(BLOCK, (size - BLOCK) // (BLOCKS - 1)))
                digest.update(content.read(BLOCK))
    return digest.hexdigest()
