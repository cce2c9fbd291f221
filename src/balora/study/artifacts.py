"""What finished cells kept in their folders, for the modules that draw it in the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from balora.report import Run
from balora.study.plan import Cell

#: Heading, caption and figure.
Drawn = tuple[str, str, Figure]


@dataclass(frozen=True)
class Finished:
    """A cell that is done.

    Attributes:
        cell: The cell.
        run: Its figures.
        folder: Its folder.
    """

    cell: Cell
    run: Run
    folder: Path


def with_file(finished: list[Finished], name: str) -> Iterator[tuple[Finished, Path]]:
    """Those that kept a file of this name, with its path."""
    for done in finished:
        if (path := done.folder / name).exists():
            yield done, path
