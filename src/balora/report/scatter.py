"""The picture of the trade: what a method gained on the task against how far it moved from what the model was."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from balora.report.glossary import better_direction
from balora.report.label_placement import Label, place_labels
from balora.report.results import PRETRAINED, Run
from balora.report.style import INK, MUTED, figure_style, method_styles


def tradeoff_figure(
    runs: Sequence[Run],
    task_metric: str,
    drift_metric: str,
    styles: Mapping[str, tuple[str, str]] | None = None,
) -> Figure | None:
    """Scatter of drift (x) against task score (y): a small dot per seed, a large one for the mean of each method.

    Args:
        runs: The runs of one task.
        task_metric: The metric on the y axis.
        drift_metric: The metric on the x axis.
        styles: Colour and marker of each method, where a study of several tasks has settled them.

    Returns:
        The figure, or None when no fine-tuned run has both metrics.
    """
    points = _points(runs, drift_metric, task_metric)
    if not points.keys() - {PRETRAINED}:
        return None
    styles = styles or method_styles(runs)
    with figure_style():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.margins(0.12)
        axes.locator_params(nbins=6)
        for method, (colour, marker) in styles.items():
            if method in points:
                axes.scatter(*points[method].T, s=22, color=colour, marker=marker, alpha=0.45, linewidths=0)
                axes.scatter(
                    *_centre(points[method]), s=110, color=colour, marker=marker, edgecolors="white", zorder=3
                )
        if PRETRAINED in points:
            start = _centre(points[PRETRAINED])
            axes.scatter(*start, s=90, facecolors="white", edgecolors=INK, linewidths=1.6, zorder=3)
        _name_axes(axes, task_metric, drift_metric)

        # Labels are placed in pixels, so the layout must be settled first.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        labels = [_label(method, *_centre(of_method), styles) for method, of_method in points.items()]
        centres = [(label.x, label.y) for label in labels]
        place_labels(axes, labels, np.concatenate([*points.values(), centres]))
    return figure


def _points(runs: Sequence[Run], x_metric: str, y_metric: str) -> dict[str, np.ndarray]:
    """Per method, the (x, y) of every run that has both. # (seeds, 2)"""
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        point = (run.metrics.get(x_metric, math.nan), run.metrics.get(y_metric, math.nan))
        if all(map(math.isfinite, point)):
            points.setdefault(run.method, []).append(point)
    return {method: np.array(of_method) for method, of_method in points.items()}


def _centre(points: np.ndarray) -> tuple[float, float]:
    x, y = points.mean(axis=0)
    return float(x), float(y)


def _label(method: str, x: float, y: float, styles: Mapping[str, tuple[str, str]]) -> Label:
    if method == PRETRAINED:
        return Label(f"{PRETRAINED} (start)", x, y, INK)
    red, green, blue = to_rgb(styles[method][0])
    # Some colours of the palette are too light for text.
    return Label(method, x, y, (0.65 * red, 0.65 * green, 0.65 * blue))


def _name_axes(axes: Axes, task_metric: str, drift_metric: str) -> None:
    """Name the axes at their ends, where the arrow tells which way is better."""
    x_words = {"lower": f"← {drift_metric}, lower is better", "higher": f"{drift_metric}, higher is better →"}
    y_words = {"lower": f"↓ {task_metric}, lower is better", "higher": f"↑ {task_metric}, higher is better"}
    x_name = x_words.get(better_direction(drift_metric), drift_metric)
    y_name = y_words.get(better_direction(task_metric), task_metric)
    axes.set_xlabel(x_name, loc="right", color=MUTED, parse_math=False)
    axes.set_title(y_name, loc="left", color=MUTED, fontsize="medium", parse_math=False)
