"""The trade-off figure: task score against drift from the base model, with direct labels beside the marks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Bbox

from balora.report.glossary import better_direction
from balora.report.results import PRETRAINED, Run
from balora.report.style import INK, MUTED, figure_style, method_styles

_ANGLES = (0, 90, 270, 180, 45, 315, 135, 225, 20, 340, 160, 200)  # degrees, in order of preference
_DISTANCES = (10, 17, 26, 38, 52, 70, 95, 125, 160)  # points from the mark's centre to the label's nearest edge
_JOINED_FROM = 26  # points; from this distance on a line joins the label to its mark
_MARK_RADIUS = 6  # points kept free around every mark
_APART = 2  # points between two labels
_UNREADABLE = 10  # cost of covering another label or leaving the axes, relative to covering a mark


@dataclass(frozen=True)
class Label:
    """A text in a colour for the mark at (x, y), in data coordinates."""

    text: str
    x: float
    y: float
    colour: str | tuple[float, float, float]


@dataclass(frozen=True)
class _Spot:
    """A candidate position of a label, in pixels, and the line that would join it to its mark."""

    box: Bbox
    leader: Path
    distance: float


def tradeoff_figure(
    runs: Sequence[Run],
    task_metric: str,
    drift_metric: str,
    styles: Mapping[str, tuple[str, str]] | None = None,
) -> Figure | None:
    """Draw a scatter of drift (x) and task score (y): a small dot per seed, a large one per method's mean.

    Args:
        runs: The runs of one task.
        task_metric: The metric on the y axis.
        drift_metric: The metric on the x axis.
        styles: Colour and marker of each method; default: `method_styles(runs)`.

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
    """Return the (x, y) of every run that has both, by method. # (seeds, 2)"""
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
    """Label the axes at their ends, with an arrow in the better direction."""
    x_words = {"lower": f"← {drift_metric}, lower is better", "higher": f"{drift_metric}, higher is better →"}
    y_words = {"lower": f"↓ {task_metric}, lower is better", "higher": f"↑ {task_metric}, higher is better"}
    x_name = x_words.get(better_direction(drift_metric), drift_metric)
    y_name = y_words.get(better_direction(task_metric), task_metric)
    axes.set_xlabel(x_name, loc="right", color=MUTED, parse_math=False)
    axes.set_title(y_name, loc="left", color=MUTED, fontsize="medium", parse_math=False)


def place_labels(axes: Axes, labels: Sequence[Label], marks: np.ndarray) -> None:
    """Write each text beside its mark, joined by a thin line if there is no room nearby.

    A greedy search over a few directions and distances; if nothing is free, the least crowded spot is taken.

    Args:
        axes: Axes whose limits and layout are final.
        labels: The labels, the most important first.
        marks: Every drawn mark, in data coordinates. # (N, 2)
    """
    pixels_per_point = axes.figure.dpi / 72
    inside = axes.get_window_extent()
    centres = axes.transData.transform(marks)
    taken = [Bbox([centre, centre]).padded(_MARK_RADIUS * pixels_per_point) for centre in centres]
    written: list[Bbox] = []

    for label in labels:
        # A `$` in a method's name is a dollar sign, not the start of a formula.
        note = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            color=label.colour,
            annotation_clip=False,
            parse_math=False,
        )
        size = note.get_window_extent()
        centre = axes.transData.transform((label.x, label.y))
        spots = [
            _spot(centre, np.array([size.width, size.height]), angle, distance, pixels_per_point)
            for distance in _DISTANCES
            for angle in _ANGLES
        ]
        best = min(spots, key=lambda spot: _crowding(spot, taken, written, inside))
        written.append(best.box.padded(_APART * pixels_per_point))
        note.set_position((best.box.get_points().mean(axis=0) - centre) / pixels_per_point)
        if best.distance >= _JOINED_FROM:
            line = axes.transData.inverted().transform(best.leader.vertices)
            axes.plot(*line.T, color=label.colour, linewidth=0.7, zorder=1, scalex=False, scaley=False)


def _spot(centre: np.ndarray, size: np.ndarray, angle: float, distance: float, pixels_per_point: float) -> _Spot:
    direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    near = centre + direction * distance * pixels_per_point
    # The label touches `near` with an edge or corner: beside it for level directions, above it for steep ones.
    middle = near + np.clip(direction * 1.5, -1, 1) * size / 2
    return _Spot(Bbox([middle - size / 2, middle + size / 2]), Path([centre, near]), distance)


def _crowding(spot: _Spot, taken: Sequence[Bbox], written: Sequence[Bbox], inside: Bbox) -> float:
    """Return the cost of a spot in square pixels: what its label covers, what lies outside, what its line crosses."""
    area = spot.box.width * spot.box.height
    outside = area - _overlap(spot.box, inside)
    covered = sum(_overlap(spot.box, other) for other in taken)
    struck = sum(area for other in written if spot.leader.intersects_bbox(other))
    return covered + struck + _UNREADABLE * (outside + sum(_overlap(spot.box, other) for other in written))


def _overlap(box: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(box, other)
    return 0.0 if shared is None else shared.width * shared.height
