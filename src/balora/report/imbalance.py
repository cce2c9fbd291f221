"""What imbalance does to the classes: maps of their representations, and which class is taken for which.

The pictures of BA-LoRA's study of imbalance (figure 3): one panel per method or setting, to be read side by side.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from balora.report.figures import COLOURS, INK, MARKERS, MUTED, figure_style

_COLUMNS = 4
_MAP = 2.4  # inches, width and height of a map
_LINE = 0.17  # inches, height of a line of text
_CHARACTER = 0.075  # inches, width of one
_FRAME = "#c4cbd3"
_SHARES = LinearSegmentedColormap.from_list("shares", ["white", COLOURS[0]])


def tsne_figure(
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]], label_names: Sequence[str], *, minority: int | None = None
) -> Figure:
    """Maps of examples side by side: one colour and marker per class, the fewer its examples the larger.

    Axes have no ticks, since the coordinates of t-SNE mean nothing; both have the same scale.

    Args:
        panels: Title (of one or more lines) to points `(N, 2)` and labels `(N,)`.
        label_names: Names by class id.
        minority: The class drawn on top of the others; by default that with the fewest examples in the panel.
    """
    with figure_style():
        figure, axes_by_title = _grid(panels, _MAP, _MAP, extra=2 * _LINE)
        for title, (points, labels) in panels.items():
            _draw_map(axes_by_title[title], np.asarray(points), np.asarray(labels), minority)
        _legend(figure, label_names)
    return figure


def confusion_figure(matrices: Mapping[str, np.ndarray], label_names: Sequence[str]) -> Figure:
    """Confusion matrices side by side, shaded by the share of the true class, with the counts written inside.

    Args:
        matrices: Title (of one or more lines) to counts `(D, D)`, true classes in rows and predicted ones in columns.
        label_names: Names by class id.
    """
    digits = max(len(f"{count:,}") for matrix in matrices.values() for count in np.ravel(matrix))
    cell = max(0.55, (digits + 1.5) * _CHARACTER)
    longest = _CHARACTER * max(map(len, label_names))
    side = cell * len(label_names)
    with figure_style():
        figure, axes_by_title = _grid(matrices, side + 0.3, side + 0.3, extra=longest + 2 * _LINE)
        for title, matrix in matrices.items():
            mesh = _draw_matrix(axes_by_title[title], np.asarray(matrix), label_names, upright=longest < cell)
        _scale(figure, mesh, list(axes_by_title.values()))
    return figure


def _grid(titles: Iterable[str], width: float, height: float, *, extra: float) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel of that size in inches per title, `extra` inches around them, in even rows."""
    titles = list(titles)
    rows = math.ceil(len(titles) / _COLUMNS)
    columns = math.ceil(len(titles) / rows)
    wrapped = [_wrapped(title, int(width / _CHARACTER)) for title in titles]
    lines = max(title.count("\n") + 1 for title in wrapped)
    size = (columns * (width + 0.1) + extra, rows * (height + 0.1 + lines * _LINE) + extra)
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, title in zip(panels, wrapped, strict=False):
        axes.set_title(title, loc="left", fontsize="medium", color=INK, parse_math=False)
        axes.grid(False)
    for axes in panels[len(titles) :]:
        axes.remove()
    return figure, dict(zip(titles, panels, strict=False))


def _wrapped(title: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width) for line in title.splitlines())


def _style(class_id: int) -> dict[str, str]:
    return {"color": COLOURS[class_id % len(COLOURS)], "marker": MARKERS[class_id % len(MARKERS)]}


def _draw_map(axes: Axes, points: np.ndarray, labels: np.ndarray, minority: int | None) -> None:
    present, counts = np.unique(labels, return_counts=True)
    order = sorted(zip(present.tolist(), counts.tolist(), strict=True), key=lambda c: (c[0] == minority, -c[1], c[0]))
    for class_id, count in order:
        size = 64 * count**-0.25  # square points: 36 for ten examples, 11 for a thousand
        at = points[labels == class_id]
        axes.scatter(*at.T, s=size, alpha=0.75, edgecolors="white", linewidths=0.3, **_style(class_id))
    axes.set(xticks=[], yticks=[])
    axes.set_box_aspect(1)
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[:].set(visible=True, color=_FRAME)


def _legend(figure: Figure, label_names: Sequence[str]) -> None:
    handles = [Line2D([], [], linestyle="", markersize=6, **_style(c)) for c in range(len(label_names))]
    # Names are set afterwards: Matplotlib would drop those that start with `_` and typeset those with a `$`.
    legend = figure.legend(
        handles, [" "] * len(handles), loc="outside upper left", ncols=len(handles), frameon=False, handletextpad=0.1
    )
    for text, name in zip(legend.get_texts(), label_names, strict=True):
        text.set(text=name, parse_math=False)


def _draw_matrix(axes: Axes, matrix: np.ndarray, label_names: Sequence[str], *, upright: bool) -> QuadMesh:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # (D, D); a class without examples stays white
    mesh = axes.pcolormesh(shares, cmap=_SHARES, vmin=0, vmax=1, edgecolors=_FRAME, linewidth=0.6)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > 0.6 else INK
        axes.text(column + 0.5, row + 0.5, f"{matrix[row, column]:,}", ha="center", va="center", color=colour)
    places = np.arange(len(matrix)) + 0.5
    slanted = {} if upright else {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(places, label_names, parse_math=False, **slanted)
    axes.set_yticks(places, label_names, parse_math=False)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted", loc="right", color=MUTED)
    axes.set_ylabel("true", loc="top", color=MUTED)
    axes.label_outer()
    return mesh


def _scale(figure: Figure, mesh: QuadMesh, panels: list[Axes]) -> None:
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8, aspect=24, ticks=[0, 0.5, 1])
    bar.set_ticklabels(["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    bar.set_label("share of the true class", color=MUTED)
