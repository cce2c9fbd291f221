"""How a figure is spread over many cases, method by method: a violin for each."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from balora.report.style import COLOURS, INK, MUTED, figure_style


def violin_figure(samples: Mapping[str, Sequence[float]], name: str, *, middle: float | None = None) -> Figure:
    """A violin for each sample, one below the other, with quartiles and the share of values beyond the middle.

    Args:
        samples: By what stands beside the violin; each of at least one value.
        name: Of the figure on the axis.
        middle: Where a line parts good values, above it, from bad ones; `None` for no line.
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
