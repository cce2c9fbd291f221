"""What a model inherits from its pretraining, and what it costs to be rid of it.

One picture has the flaws that were planted in pretraining against those measured after fine-tuning, the other all
methods' trades at once: what was learned, against each thing that should have stayed as it was or gone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from balora.report.glossary import better_direction, with_arrow
from balora.report.results import PRETRAINED, Run
from balora.report.style import INK, MUTED, figure_style, method_styles
from balora.report.sweep import spans

_PANEL = (3.6, 3.4)  # inches


@dataclass(frozen=True)
class Axis:
    """One thing that was planted, and what is measured of it.

    Attributes:
        name: Of what was planted.
        flaw: The metric that it shows in.
        levels: How much was planted, ascending, and the runs on what was pretrained so.
    """

    name: str
    flaw: str
    levels: Mapping[float, Sequence[Run]]


def inheritance_figure(axes: Sequence[Axis]) -> Figure:
    """A panel for each axis: the flaw by what was planted, a line for each method and a dashed one for the pretrained.

    Means over seeds, with a band of one standard deviation. Levels that span much are on a logarithmic axis.
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
            if spans(levels):
                panel.set_xscale("log")
                panel.minorticks_off()
            panel.set_xticks(levels, [f"{level:g}" for level in levels])
            panel.set_title(with_arrow(axis.flaw), loc="left", fontsize="medium", color=INK, parse_math=False)
            panel.set_xlabel(axis.name, loc="right", color=MUTED, parse_math=False)
        _legend(figure, styles)
    return figure


def pareto_figure(runs: Sequence[Run], task_metric: str, others: Sequence[str]) -> Figure | None:
    """A panel for each other metric (x) with the task's on the y axis: a mark per seed, a large one per method.

    A large mark is filled where no other method's means are at least as good in all of the metrics and better in one.
    The steps join the methods that are so in the two metrics of the panel: what can be had at each x. A dashed line is
    at the pretrained model's x, where all methods started.

    Args:
        runs: Of one task.
        task_metric: How well the task was learned.
        others: What should not have grown, or fallen, meanwhile.

    Returns:
        The figure, or None when no fine-tuned method has all of these metrics.
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
            if spans([mean[place] for mean in means.values()]):
                panel.set_xscale("log")
            for x in _values(runs, PRETRAINED, other):
                panel.axvline(x, color=INK, linewidth=1.2, linestyle="--", zorder=1)
            panel.set_xlabel(with_arrow(other), loc="right", color=MUTED, parse_math=False)
        panels[0].set_title(with_arrow(task_metric), loc="left", fontsize="medium", color=MUTED, parse_math=False)
        _legend(figure, styles, joined=False)
    return figure


def undominated(scores: Mapping[str, Sequence[float]]) -> list[str]:
    """The names that no other one is at least as good as in every score and better than in one; higher is better."""

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


def _legend(figure: Figure, styles: Mapping[str, tuple[str, str]], *, joined: bool = True) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="-" if joined else "", markersize=6)
        for colour, marker in styles.values()
    ]
    start = {"marker": "o", "markerfacecolor": "white"} if joined else {}
    handles.append(Line2D([], [], color=INK, linestyle="--", markersize=6, **start))
    # Names are set afterwards: Matplotlib would drop those that start with `_` and typeset those with a `$`.
    legend = figure.legend(handles, [" "] * len(handles), loc="outside upper left", ncols=5, frameon=False)
    for text, name in zip(legend.get_texts(), [*styles, PRETRAINED], strict=True):
        text.set(text=name, parse_math=False)
