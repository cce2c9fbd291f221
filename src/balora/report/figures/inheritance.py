"""Figures of inherited flaws: measured after fine-tuning against what was planted in pretraining, and the trade-offs.

`inheritance_figure` shows each flaw against its planted level. `pareto_figure` shows the task score against every
metric that should have stayed low (or high).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from balora.report.figures.sweep import is_logarithmic
from balora.report.glossary import better_direction, with_arrow
from balora.report.results import PRETRAINED, Run
from balora.report.style import INK, MUTED, draw_legend, figure_style, method_styles

_PANEL = (3.6, 3.4)  # inches


@dataclass(frozen=True)
class Axis:
    """A planted flaw and its measurements.

    Attributes:
        name: The setting of pretraining that plants the flaw.
        flaw: The metric that measures it.
        levels: Level of the setting, ascending, to the runs that started from a model pretrained at that level.
    """

    name: str
    flaw: str
    levels: Mapping[float, Sequence[Run]]


def inheritance_figure(axes: Sequence[Axis]) -> Figure:
    """Draw each flaw against its planted level: one line per method, a dashed one for the pretrained model.

    Means over seeds, with a band of one standard deviation. The axis of levels that span a factor of 8 or more is
    logarithmic.
    """
    styles = method_styles(run for axis in axes for runs in axis.levels.values() for run in runs)
    with figure_style():
        figure = Figure(figsize=(_PANEL[0] * len(axes), _PANEL[1] + 0.5), layout="constrained")
        for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            for method, (colour, marker) in styles.items():
                _draw_line(panel, axis, method, color=colour, marker=marker, linewidth=1.5)
            _draw_line(
                panel, axis, PRETRAINED, color=INK, marker="o", linewidth=1.2, linestyle="--", markerfacecolor="white"
            )
            levels = list(axis.levels)
            if is_logarithmic(levels):
                panel.set_xscale("log")
                panel.minorticks_off()
            panel.set_xticks(levels, [f"{level:g}" for level in levels])
            panel.set_title(with_arrow(axis.flaw), loc="left", fontsize="medium", color=INK, parse_math=False)
            panel.set_xlabel(axis.name, loc="right", color=MUTED, parse_math=False)
        _method_legend(figure, styles)
    return figure


def pareto_figure(runs: Sequence[Run], task_metric: str, others: Sequence[str]) -> Figure | None:
    """Draw the task metric (y) against each other metric (x): a mark per seed, a large one per method.

    A large mark is filled if no other method dominates it over all metrics. The steps are the Pareto front of the two
    metrics of the panel. A dashed line marks the pretrained model's x, where all methods started.

    Args:
        runs: The runs of one task.
        task_metric: The metric of the task.
        others: Metrics that training should not have made worse.

    Returns:
        The figure, or None if no fine-tuned method has all of these metrics.
    """
    metrics, styles = (task_metric, *others), method_styles(runs)
    found = {method: [_values(runs, method, metric) for metric in metrics] for method in styles}
    means = {method: [float(np.mean(v)) for v in values] for method, values in found.items() if all(values)}
    if not means:
        return None
    signs = [-1 if better_direction(metric) == "lower" else 1 for metric in metrics]
    scores = {method: [s * mean for s, mean in zip(signs, own, strict=True)] for method, own in means.items()}
    best = undominated(scores)
    with figure_style():
        figure = Figure(figsize=(1.25 * _PANEL[0] * len(others), _PANEL[1] + 0.7), layout="constrained")
        panels = figure.subplots(1, len(others), squeeze=False, sharey=True)[0]
        for place, (panel, other) in enumerate(zip(panels, others, strict=True), start=1):
            front = undominated({method: [own[0], own[place]] for method, own in scores.items()})
            corners = np.array(sorted((means[method][place], means[method][0]) for method in front)).reshape(-1, 2)
            steps = "steps-post" if signs[place] < 0 else "steps-pre"
            panel.plot(*corners.T, color=MUTED, linewidth=0.9, drawstyle=steps, zorder=1)
            for method, mean in means.items():
                colour, marker = styles[method]
                _draw_seeds(panel, runs, method, other, task_metric, color=colour, marker=marker)
                style = {"facecolors": colour if method in best else "white", "edgecolors": colour, "marker": marker}
                panel.scatter(mean[place], mean[0], s=85, linewidths=1.5, zorder=3, **style)
            if is_logarithmic([mean[place] for mean in means.values()]):
                panel.set_xscale("log")
            for x in _values(runs, PRETRAINED, other):
                panel.axvline(x, color=INK, linewidth=1.2, linestyle="--", zorder=1)
            panel.set_xlabel(with_arrow(other), loc="right", color=MUTED, parse_math=False)
        panels[0].set_title(with_arrow(task_metric), loc="left", fontsize="medium", color=MUTED, parse_math=False)
        _method_legend(figure, styles, joined=False)
    return figure


def undominated(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the Pareto-optimal names: those that no other name dominates. Higher scores are better."""

    def beats(one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(one, other, strict=True))
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [name for name, own in scores.items() if not any(beats(other, own) for other in scores.values())]


def _draw_line(panel: Axes, axis: Axis, method: str, **style: object) -> None:
    measured = {level: _values(runs, method, axis.flaw) for level, runs in axis.levels.items()}
    measured = {level: values for level, values in measured.items() if values}
    means = np.array([np.mean(values) for values in measured.values()])
    spread = np.array([np.std(values, ddof=1) if len(values) > 1 else 0.0 for values in measured.values()])
    panel.plot(list(measured), means, markersize=5, **style)
    panel.fill_between(list(measured), means - spread, means + spread, color=style["color"], alpha=0.12, linewidth=0)


def _values(runs: Sequence[Run], method: str, metric: str) -> list[float]:
    values = [run.metrics.get(metric, math.nan) for run in runs if run.method == method]
    return [value for value in values if math.isfinite(value)]


def _draw_seeds(panel: Axes, runs: Sequence[Run], method: str, x: str, y: str, **style: str) -> None:
    points = [(run.metrics.get(x, math.nan), run.metrics.get(y, math.nan)) for run in runs if run.method == method]
    panel.scatter(*zip(*points, strict=True), s=20, alpha=0.45, linewidths=0, **style)


def _method_legend(figure: Figure, styles: Mapping[str, tuple[str, str]], *, joined: bool = True) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="-" if joined else "", markersize=6)
        for colour, marker in styles.values()
    ]
    start = {"marker": "o", "markerfacecolor": "white"} if joined else {}
    handles.append(Line2D([], [], color=INK, linestyle="--", markersize=6, **start))
    draw_legend(figure, handles, [*styles, PRETRAINED], ncols=5)
