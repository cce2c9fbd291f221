"""Figures of metrics against a setting or a level: one panel per metric, one line per method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from balora.report.glossary import with_arrow
from balora.report.results import Run
from balora.report.style import COLOURS, INK, MARKERS, MUTED, draw_legend, figure_style

#: The axis is logarithmic from this ratio of the largest value to the smallest.
LOGARITHMIC_FROM = 8


def sweep_figure(
    runs: Sequence[Run], points: Mapping[str, tuple[str, Mapping[str, Any]]], key: str, metrics: Sequence[str]
) -> Figure:
    """Draw each metric against one setting: mean over seeds, with a band of one standard deviation.

    Args:
        runs: The runs of one task; their `method` is a label of the sweep.
        points: Label to its method and the values of all swept settings. There is one line per method and combination
            of the settings other than `key`.
        key: The setting on the x axis: numbers, or names and ratios in order of appearance.
        metrics: One panel each.
    """
    lines: dict[str, dict[Any, list[Run]]] = {}
    for run in (run for run in runs if run.method in points):
        method, values = points[run.method]
        name = " ".join([method, *(f"{other}={value_name(value)}" for other, value in values.items() if other != key)])
        point = values[key]
        lines.setdefault(name, {}).setdefault(point if _are_numbers([point]) else value_name(point), []).append(run)
    styles = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(lines)}
    ticks = list(dict.fromkeys(value for line in lines.values() for value in line))
    places = _places(ticks)
    with figure_style():
        figure = Figure(figsize=(1 + 3.6 * len(metrics), 3.3), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for name, line in lines.items():
                _draw(axes, {places[value]: runs for value, runs in line.items()}, metric, *styles[name])
            if is_logarithmic(ticks):
                axes.set_xscale("log")
                axes.minorticks_off()
            axes.set_xticks([places[value] for value in ticks], [str(value) for value in ticks])
            axes.set_title(with_arrow(metric), loc="left", fontsize="medium", color=INK, parse_math=False)
            axes.set_xlabel(key, loc="right", color=MUTED, parse_math=False)
        handles = [Line2D([], [], color=colour, marker=marker, markersize=5) for colour, marker in styles.values()]
        draw_legend(figure, handles, styles, ncols=4)
    return figure


def value_name(value: Any) -> str:
    """Return a swept value as text: a class ratio or a mixture as `90:10`, others as they are."""
    if isinstance(value, list) and _are_numbers(value):
        return ":".join(f"{number:g}" for number in value)
    return str(value)


def _draw(axes: Axes, line: Mapping[float, Sequence[Run]], metric: str, colour: str, marker: str) -> None:
    measured = {x: [run.metrics.get(metric, math.nan) for run in runs] for x, runs in sorted(line.items())}
    measured = {x: found for x, values in measured.items() if (found := [v for v in values if math.isfinite(v)])}
    means = np.array([np.mean(values) for values in measured.values()])
    spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in measured.values()])
    axes.plot(list(measured), means, color=colour, marker=marker, markersize=5, linewidth=1.6)
    axes.fill_between(list(measured), means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _places(values: Sequence[Any]) -> dict[Any, float]:
    return {value: value if _are_numbers(values) else place for place, value in enumerate(values)}


def is_logarithmic(values: Sequence[Any]) -> bool:
    """Return whether these numbers need a logarithmic axis: positive, and spanning a factor of 8 or more."""
    return _are_numbers(values) and min(values) > 0 and max(values) / min(values) >= LOGARITHMIC_FROM


#: Panel to level to value.
ByLevel = Mapping[str, Mapping[float, float]]


def level_figure(measured: Sequence[tuple[Run, ByLevel]], name: str) -> Figure:
    """Draw measurements against the level they were taken at (of noise, or of perturbation): one line per method.

    Args:
        measured: Runs of one task, each with the same panels and levels.
        name: Label of the level's axis.
    """
    points, found = {}, []
    for run, panels in measured:
        for level in next(iter(panels.values())):
            label = f"{run.method} {level}"
            points[label] = (run.method, {name: level})
            found.append(replace(run, method=label, metrics={panel: panels[panel][level] for panel in panels}))
    return sweep_figure(found, points, name, list(measured[0][1]))
