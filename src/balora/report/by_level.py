"""How figures follow a level that every run was measured at: of noise, or of how differently a question is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from balora.report.results import Run
from balora.report.sweep import sweep_figure

#: Of each panel, the value at each level.
ByLevel = Mapping[str, Mapping[float, float]]


def by_level_figure(measured: Sequence[tuple[Run, ByLevel]], name: str) -> Figure:
    """Means over seeds against the level, with a band of one standard deviation; a line for each method.

    Args:
        measured: Runs of one task, each with the same panels and levels.
        name: What the level is called.
    """
    points, found = {}, []
    for run, panels in measured:
        for level in next(iter(panels.values())):
            label = f"{run.method} {level}"
            points[label] = (run.method, {name: level})
            found.append(replace(run, method=label, metrics={panel: panels[panel][level] for panel in panels}))
    return sweep_figure(found, points, name, list(measured[0][1]))
