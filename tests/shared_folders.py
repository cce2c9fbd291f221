"""Folders that are built once a run, whichever of pytest-xdist's workers needs them first."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def built_once(tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """Return the folder of that name, filled by `build(folder)` in the first worker that asks for it.

    The others wait for it. Without pytest-xdist the folder is the one process's own.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            build(folder)
            (folder / "complete").touch()
    return folder
