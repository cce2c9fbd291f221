"""The look of every figure: palette, style, legend, and export as SVG for pages and files for documents.

Figures are built on `matplotlib.figure.Figure` directly, without pyplot, so making one changes no global state.
"""

import io
import re
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from balora.report.results import PRETRAINED, Run

INK, MUTED, FAINT = "#1f2933", "#5f6b7a", "#e4e7eb"

# Blue, vermillion, green, pink, wine, orange, sky blue, grey: distinguishable under protanopia, deuteranopia and
# tritanopia. The markers repeat with another period, so a ninth method still differs from the first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#661155", "#E69F00", "#56B4E9", "#4D4D4D")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "white",
    # Text stays text: small files, selectable, readable by a screen reader.
    "svg.fonttype": "none",
}


def figure_style() -> AbstractContextManager[None]:
    """Context manager: apply balora's style to the figures built inside."""
    return matplotlib.rc_context(_STYLE)


def method_styles(runs: Iterable[Run]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each fine-tuned method, assigned in order of first appearance."""
    methods = dict.fromkeys(run.method for run in runs if run.method != PRETRAINED)
    return {
        method: (COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]) for index, method in enumerate(methods)
    }


def draw_legend(figure: Figure, handles: Sequence[Artist], names: Iterable[str], **layout: float) -> None:
    """Draw a legend above the axes.

    Args:
        figure: The figure, with constrained or compressed layout.
        handles: One per name.
        names: Shown as they are.
        layout: Further arguments of `Figure.legend`, such as `ncols`.
    """
    # Names are set afterwards: Matplotlib would drop those that start with `_` and typeset those with a `$`.
    legend = figure.legend(handles, [" "] * len(handles), loc="outside upper left", frameon=False, **layout)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Save a figure as PNG or SVG, by the suffix of `path`; missing folders are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with figure_style():
        figure.savefig(path, dpi=160)


def figure_svg(figure: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element for an HTML page.

    Args:
        figure: The figure.
        name: A name that is unique on the page, so that ids inside its SVGs do not collide.
    """
    buffer = io.StringIO()
    with figure_style(), matplotlib.rc_context({"svg.hashsalt": name}):
        # No metadata: it would contain web addresses and the time of writing.
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    # Matplotlib numbers its groups from 1 in every figure; nothing refers to those ids, and they would repeat.
    return re.sub(r'<g id="[^"]*"', "<g", svg)
