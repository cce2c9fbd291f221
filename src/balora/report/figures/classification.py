"""Figures of classifiers: t-SNE maps of the classes, confusion matrices, and violins of scores per example.

Maps and matrices are those of BA-LoRA's study of imbalance (figure 3): one panel per method or setting, side by side.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from balora.report.style import COLOURS, INK, MARKERS, MUTED, draw_legend, figure_style

_COLUMNS = 4
_MAP = 2.4  # inches, width and height of a map
_LINE, _CHARACTER = 0.17, 0.085  # inches: height of a line of text, width of a wide letter
_FRAME = "#c4cbd3"
_SHARES = LinearSegmentedColormap.from_list("shares", ["white", COLOURS[0]])
_DARK = 0.85  # from this share on, white text is easier to read than ink


def tsne_figure(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], label_names: Sequence[str], *, minority: int | None = None
) -> Figure:
    """Draw maps of examples side by side: one colour and marker per class, larger for rarer classes.

    Axes have no ticks, since t-SNE's coordinates have no meaning; both have the same scale.

    Args:
        panels: Title (of one or more lines) to points `(N, 2)` and labels `(N,)`.
        label_names: Names by class id.
        minority: The class drawn on top of the others; by default that with the fewest examples in the panel.
    """
    with figure_style():
        figure, grid = _grid(list(panels), _MAP, beside=0.1)
        for axes, (points, labels) in zip(_used(grid), panels.values(), strict=True):
            _draw_map(axes, np.asarray(points), np.asarray(labels), minority)
        _class_legend(figure, label_names)
        _trim(figure)
    return figure


def confusion_figure(matrices: Mapping[str, np.ndarray], label_names: Sequence[str]) -> Figure:
    """Draw confusion matrices side by side, shaded by the share of the true class, with the counts inside.

    Args:
        matrices: Title (of one or more lines) to counts `(D, D)`, true classes in rows and predicted ones in columns.
        label_names: Names by class id.
    """
    digits = max(len(f"{count:,}") for matrix in matrices.values() for count in np.ravel(matrix))
    cell = max(0.55, (digits + 1) * _CHARACTER)
    longest = _CHARACTER * max(map(len, label_names))
    with figure_style():
        figure, grid = _grid(list(matrices), cell * len(label_names), beside=longest + 1.4)
        for axes, matrix in zip(_used(grid), matrices.values(), strict=True):
            mesh = _draw_matrix(axes, np.asarray(matrix))
        for row, column in np.ndindex(grid.shape):
            if grid[row, column] is not None:
                lowest = row + 1 == len(grid) or grid[row + 1, column] is None
                _name_classes(grid[row, column], label_names, left=column == 0, below=lowest, upright=longest < cell)
        _scale(figure, mesh, _used(grid))
        _trim(figure)
    return figure


def _grid(titles: Sequence[str], side: float, *, beside: float) -> tuple[Figure, np.ndarray]:
    """Make a figure with one square panel per title, in rows of as equal length as possible.

    Args:
        titles: One per panel.
        side: Side of a panel in inches.
        beside: Inches that the figure is wider than its panels.

    Returns:
        The figure, higher than necessary (see `_trim`), and its axes `(rows, columns)`, None where the last row is
        short.
    """
    rows = math.ceil(len(titles) / _COLUMNS)
    columns = math.ceil(len(titles) / rows)
    wrapped = [_wrapped(title, int(1.15 * side / _CHARACTER)) for title in titles]
    lines = 2 + max(title.count("\n") for title in wrapped)
    size = (columns * (side + 0.15) + beside, rows * (side + lines * _LINE) + beside + 1)
    figure = Figure(figsize=size, layout="compressed")
    figure.get_layout_engine().set(rect=(0.01, 0, 0.98, 1))  # the layout's estimate can be a few pixels short
    grid = figure.subplots(rows, columns, squeeze=False)
    for position, axes in enumerate(grid.ravel()):
        if position >= len(titles):
            axes.remove()
            grid.flat[position] = None
            continue
        axes.set_title(wrapped[position], loc="left", fontsize="medium", color=INK, parse_math=False)
        axes.grid(False)
    return figure, grid


def _used(grid: np.ndarray) -> list[Axes]:
    return [axes for axes in grid.ravel() if axes is not None]


def _trim(figure: Figure) -> None:
    """Remove the empty space above and below."""
    figure.draw_without_rendering()
    figure.set_figheight(figure.get_tightbbox().height + 0.1)


def _wrapped(title: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in title.splitlines())


def _style(class_id: int) -> dict[str, str]:
    return {"color": COLOURS[class_id % len(COLOURS)], "marker": MARKERS[class_id % len(MARKERS)]}


def _draw_map(axes: Axes, points: np.ndarray, labels: np.ndarray, minority: int | None) -> None:
    present, counts = np.unique(labels, return_counts=True)
    order = sorted(zip(present.tolist(), counts.tolist(), strict=True), key=lambda c: (c[0] == minority, -c[1], c[0]))
    for class_id, count in order:
        size = 100 * count**-0.36  # square points: 44 for ten examples, 8 for a thousand
        at = points[labels == class_id]
        axes.scatter(*at.T, s=size, alpha=0.85, edgecolors="white", linewidths=0.08 * size**0.5, **_style(class_id))
    axes.set(xticks=[], yticks=[])
    axes.set_box_aspect(1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set(visible=True, color=_FRAME)


def _class_legend(figure: Figure, label_names: Sequence[str]) -> None:
    widest = 0.5 + _CHARACTER * max(map(len, label_names))
    columns = min(len(label_names), max(1, int(figure.get_figwidth() / widest)))
    handles = [Line2D([], [], linestyle="", markersize=6, **_style(c)) for c in range(len(label_names))]
    draw_legend(figure, handles, label_names, ncols=columns, handletextpad=0.1)


def _draw_matrix(axes: Axes, matrix: np.ndarray) -> QuadMesh:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # (D, D); a class without examples stays white
    mesh = axes.pcolormesh(shares, cmap=_SHARES, vmin=0, vmax=1, edgecolors=_FRAME, linewidth=0.6)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > _DARK else INK
        axes.text(column + 0.5, row + 0.5, f"{matrix[row, column]:,}", ha="center", va="center", color=colour)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    return mesh


def _name_classes(axes: Axes, label_names: Sequence[str], *, left: bool, below: bool, upright: bool) -> None:
    """Write class names at the left and lower edge of the figure."""
    places = np.arange(len(label_names)) + 0.5
    slanted = {} if upright else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set(xticks=[], yticks=[])
    if below:
        axes.set_xticks(places, label_names, parse_math=False, **slanted)
        axes.set_xlabel("predicted", loc="right", color=MUTED)
    if left:
        axes.set_yticks(places, label_names, parse_math=False)
        axes.set_ylabel("true", loc="top", color=MUTED)


def _scale(figure: Figure, mesh: QuadMesh, panels: list[Axes]) -> None:
    bar = figure.colorbar(mesh, ax=panels, shrink=0.9, aspect=24, ticks=[0, 0.5, 1])
    bar.set_ticklabels(["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    bar.set_label("share of the true class", color=MUTED)


def violin_figure(samples: Mapping[str, Sequence[float]], name: str, *, middle: float | None = None) -> Figure:
    """Draw a violin per sample, with its quartiles and the share of values above the middle.

    Args:
        samples: Label of each violin to its values, at least one.
        name: Label of the axis.
        middle: Position of a dotted line; values above it are good. `None`: no line.
    """
    with figure_style():
        figure = Figure(figsize=(6.4, 0.9 + 0.5 * len(samples)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(samples))[::-1]
        drawn = axes.violinplot(
            [np.asarray(values, dtype=float) for values in samples.values()], places, orientation="horizontal",
            widths=0.85, showextrema=False, bw_method=0.1,
        )  # fmt: skip
        for body in drawn["bodies"]:
            body.set(facecolor=COLOURS[0], edgecolor="none", alpha=0.55)
        for place, values in zip(places, samples.values(), strict=True):
            low, median, high = np.percentile(values, (25, 50, 75))
            axes.plot([low, high], [place, place], color=INK, linewidth=1.2)
            axes.plot([median], [place], marker="o", markersize=4, color=INK)
            if middle is not None:
                share = float(np.mean(np.asarray(values) > middle))
                axes.annotate(
                    f"{share:.0%}", (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0),
                    textcoords="offset points", va="center", color=MUTED,
                )  # fmt: skip
        if middle is not None:
            axes.axvline(middle, color=MUTED, linewidth=0.8, linestyle=":")
        axes.set_yticks(places, list(samples), parse_math=False)
        axes.set_xlabel(name, loc="right", color=MUTED, parse_math=False)
    return figure
