"""Fuzz targets: the readers of rows and recipes, each on a file in its own folder.

A target returns where the bytes are read, or refused by one clear error; it raises whatever else happened. It needs no
fuzzer, so that a test can tell that it would notice.
"""

import gzip
import os
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from bad_inputs import PATIENCE, PIECES, complaint
from right_recipes import NAMES, RECIPES, planned
from right_rows import READERS, written

from balora.recipe.parse import read_recipe

TARGETS = ("recipe", *READERS)


def target(name: str, folder: Path) -> Callable[[bytes], str | None]:
    """Return a function that reads the given bytes and returns the error, `None` where they are valid.

    Args:
        name: One of `TARGETS`. For rows the first byte chooses the file format, the others are the content.
        folder: An empty folder; it is empty again after each input.
    """

    def take(given: bytes) -> str | None:
        path, content = (folder / "recipe.yaml", given) if name == "recipe" else _file(name, folder, given)
        path.write_bytes(content)
        start = time.process_time()
        said = _recipe(path) if name == "recipe" else _rows(name, path)
        assert time.process_time() - start < PATIENCE
        assert os.listdir(folder) == [path.name], "a reader writes nothing beside the file"
        assert path.read_bytes() == content, "a reader leaves the file as it is"
        path.unlink()
        return said

    return take


def seeds(name: str) -> list[bytes]:
    """Return a target's valid inputs, from which the fuzzer starts."""
    if name == "recipe":
        return [yaml.safe_dump(recipe).encode() for recipe in RECIPES]
    kinds, suffixes, _ = READERS[name]
    contents = [(number, written(rows, suffix)) for number, suffix in enumerate(suffixes) for rows in kinds]
    return [bytes([number]) + (text.encode() if isinstance(text, str) else text) for number, text in contents]


def words(name: str) -> list[bytes]:
    """Return a dictionary for the fuzzer: pieces of the formats and names of settings."""
    return [*PIECES, *(setting.encode() for setting in NAMES if name == "recipe")]


def _file(reader: str, folder: Path, given: bytes) -> tuple[Path, bytes]:
    suffixes = READERS[reader][1]
    suffix = suffixes[int.from_bytes(given[:1], "big") % len(suffixes)]
    # Bytes changed after they were compressed would all end at the checksum.
    content = gzip.compress(given[1:], mtime=0) if suffix.endswith(".gz") else given[1:]
    return folder / f"a{suffix}", content


def _rows(reader: str, path: Path) -> str | None:
    return complaint(lambda: READERS[reader][2](str(path)), path, "frequency")


def _recipe(path: Path) -> str | None:
    said = complaint(lambda: read_recipe(path), path)
    if said is not None:
        return said
    return complaint(lambda: planned(path), path, *NAMES, "Recipe", "recipe", "settings")
