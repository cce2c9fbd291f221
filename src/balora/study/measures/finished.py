"""FinishedRun runs and the files in their folders, from which the report's figures are drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from balora.report import Run
from balora.study.plan import PlannedRun

#: Heading, caption and figure.
CaptionedFigure = tuple[str, str, Figure]


@dataclass(frozen=True)
class FinishedRun:
    """A planned run that has its result.

    Attributes:
        planned: Settings, label and seed.
        run: Metrics.
        folder: Folder of the run.
    """

    planned: PlannedRun
    run: Run
    folder: Path


def runs_with(finished: list[FinishedRun], name: str) -> Iterator[tuple[FinishedRun, Path]]:
    """Yield the runs that have a file of this name in their folder, with its path."""
    for done in finished:
        if (path := done.folder / name).exists():
            yield done, path
