"""The loss curves: one small panel per loss component, one line per method."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from balora.report.results import Run
from balora.report.style import INK, MUTED, draw_legend, figure_style, method_styles

_COLUMNS = 3
_FEW_POINTS = 12  # curves of at most this many points get markers

History = Sequence[Mapping[str, Any]]


def loss_figure(
    runs: Sequence[Run], histories: Mapping[str, History], styles: Mapping[str, tuple[str, str]] | None = None
) -> Figure | None:
    """Draw the loss components over training steps: mean over seeds, with a band from minimum to maximum.

    Args:
        runs: The runs of one task.
        histories: `Run.id` to the rows of the Trainer's `log_history`. `loss`, `loss_*` and `eval_loss` are drawn; a
            method is absent from the panels of components it did not log.
        styles: Colour and marker of each method, in order; default: `method_styles(runs)`.

    Returns:
        The figure, or None when no run logged a loss.
    """
    by_method: dict[str, list[History]] = {}
    for run_id, method in {run.id: run.method for run in runs}.items():
        if run_id in histories:
            by_method.setdefault(method, []).append(histories[run_id])
    components = _components(by_method)
    if not components:
        return None

    columns = min(_COLUMNS, len(components))
    rows = math.ceil(len(components) / columns)
    styles = styles or method_styles(runs)
    drawn = [method for method in styles if method in by_method]
    with figure_style():
        legend_rows = math.ceil(len(drawn) / (columns + 1))
        height = 2.2 * rows + 0.25 * (legend_rows + 1)
        figure = Figure(figsize=(max(2.9 * columns, 4.4), height), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06, hspace=0.08)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        span = _span(by_method)
        for axes, component in zip(panels, components, strict=False):
            for method in drawn:
                _draw(axes, component, by_method[method], *styles[method])
            axes.set_xlim(*span)
            axes.locator_params(nbins=5)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_title(component, loc="left", fontsize="medium", color=INK, parse_math=False)
        for axes in panels[len(components) :]:
            axes.set_axis_off()
        for axes in panels[max(0, len(components) - columns) : len(components)]:
            axes.set_xlabel("step", loc="right", color=MUTED)
        handles = [Line2D([], [], color=styles[m][0], marker=styles[m][1], markersize=5) for m in drawn]
        draw_legend(figure, handles, drawn, ncols=columns + 1, handlelength=1.6)
    return figure


def _components(by_method: Mapping[str, Sequence[History]]) -> list[str]:
    """Return the logged components: the total first, then its parts as they appear, the held-out loss last."""
    keys = {key: None for logs in by_method.values() for rows in logs for row in rows for key in row}
    parts = [key for key in keys if key.startswith("loss_")]
    return [key for key in ("loss", *parts, "eval_loss") if key in keys]


def _span(by_method: Mapping[str, Sequence[History]]) -> tuple[float, float]:
    """Return the limits of the step axis, shared by all panels."""
    last = max(row["step"] for logs in by_method.values() for rows in logs for row in rows)
    return -0.03 * last, 1.03 * last


def _draw(axes: Axes, component: str, logs: Sequence[History], colour: str, marker: str) -> None:
    values: dict[int, list[float]] = {}
    for row in (row for rows in logs for row in rows if row.get(component) is not None):
        if math.isfinite(row[component]):
            values.setdefault(row["step"], []).append(row[component])
    if not values:
        return
    steps = sorted(values)
    means = [np.mean(values[step]) for step in steps]
    shown = marker if len(steps) <= _FEW_POINTS else ""
    axes.plot(steps, means, color=colour, linewidth=1.6, marker=shown, markersize=4)
    least, most = [min(values[step]) for step in steps], [max(values[step]) for step in steps]
    axes.fill_between(steps, least, most, color=colour, alpha=0.15, linewidth=0)
