"""Warnings in a study: balora's are shown once for a task, though every run of the task would repeat them.

Runs are processes of their own, so what was shown is marked by an empty file in a folder that they share.
"""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_shown: set[str] = set()


def shown_warnings() -> frozenset[str]:
    """Return the marks of the warnings that this process showed within `once_for_task`."""
    return frozenset(_shown)


@contextmanager
def once_for_task(task: str, folder: Path | None = None, before: frozenset[str] = frozenset()) -> Iterator[None]:
    """Context manager: show balora's warnings of a task unless a run of it showed the same text.

    Args:
        task: Name of the task.
        folder: Folder that the study's runs share; `None` for none.
        before: Marks of the warnings that the study's own process showed.
    """
    show = warnings.showwarning

    def show_once(message: Warning | str, *arguments: Any, **settings: Any) -> None:
        text = str(message)
        if text.startswith("balora: "):
            mark = hashlib.sha256(f"{task}\n{text}".encode()).hexdigest()
            if mark in before or not _mark(mark, folder):
                return
        show(message, *arguments, **settings)

    warnings.showwarning = show_once
    try:
        yield
    finally:
        warnings.showwarning = show


def _mark(mark: str, folder: Path | None) -> bool:
    """Mark a warning as shown; return whether it was not yet."""
    if folder is not None:
        try:
            (folder / f"warned-{mark}").touch(exist_ok=False)
        except FileExistsError:
            return False
    _shown.add(mark)
    return True
