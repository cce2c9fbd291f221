"""The audit as one HTML file: what was kept, lost and skewed, each figure with interval and definition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from balora import report
from balora.audit.definitions import DEFINITIONS, DRAWN, SECTIONS
from balora.audit.figures import Estimate, Figure
from balora.audit.settings import AuditSettings
from balora.report.figures import COLOURS, MUTED, figure_style, figure_svg
from balora.report.versions import versions


def write_audit_page(
    path: str | Path, *, settings: AuditSettings, kind: str, figures: Sequence[Figure], notes: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        settings: What was asked for, shown as it is.
        kind: Of model.
        figures: In the order of their measurement.
        notes: Remarks, a paragraph each.
    """
    # Names of models and files are the user's and escaped; only drawings, which escape their own text, are markup.
    templates = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = templates.get_template("audit.html").render(
        title=f"What became of {settings.model}" if settings.adapter else f"Audit of {settings.model}",
        settings=settings,
        kind=kind,
        compared=settings.adapter is not None,
        sentences=sentences(figures),
        notes=notes,
        sections=_sections(figures),
        definitions=DEFINITIONS,
        drawings=[
            (caption, Markup(figure_svg(drawing(figures, name), name)))
            for name, caption in DRAWN.items()
            if any(figure.name == name for figure in figures)
        ],
        versions=versions(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def sentences(figures: Sequence[Figure]) -> list[str]:
    """The changes that are beyond the noise of the items, in words, those for the worse first."""
    found = []
    for figure in figures:
        definition = DEFINITIONS.get(figure.name)
        if definition is None or not figure.changed:
            continue
        rose = figure.change.value > 0
        worse = definition.better == ("lower" if rose else "higher")
        verdict = "worse: " if worse else "better: " if definition.better else ""
        on = f" on {figure.on}" if figure.on else ""
        text = (
            f"{verdict}{definition.title}{on} {'rose' if rose else 'fell'} from "
            f"{shown(figure.name, figure.base.value)} to {shown(figure.name, figure.tuned.value)}"
        )
        found.append((0 if worse else 2 if definition.better else 1, text))
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def shown(name: str, value: float) -> str:
    """A value with its figure's decimals; two significant digits where they would hide it, a dash for NaN."""
    if np.isnan(value):
        return "–"
    decimals = DEFINITIONS[name].decimals
    return f"{value:.2g}" if 0 < abs(value) < 10**-decimals else f"{value:,.{decimals}f}"


def shown_with_interval(name: str, estimate: Estimate | None, sign: bool = False) -> str:
    """A value, its interval in brackets."""
    if estimate is None:
        return ""
    plus = "+" if sign and estimate.value > 0 else ""
    interval = f" [{shown(name, estimate.low)}, {shown(name, estimate.high)}]"
    return f"{plus}{shown(name, estimate.value)}{'' if np.isnan(estimate.low) else interval}"


def _sections(figures: Sequence[Figure]) -> dict[str, list[dict[str, Any]]]:
    """By heading, the rows of its table."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in figures:
        definition = DEFINITIONS.get(figure.name)
        if definition is None:
            continue
        rose = figure.change is not None and figure.change.value > 0
        worse = figure.changed and definition.better == ("lower" if rose else "higher")
        sections.setdefault(definition.section, []).append(
            {
                "name": figure.name,
                "definition": definition,
                "on": figure.on,
                "base": shown_with_interval(figure.name, figure.base),
                "tuned": shown_with_interval(figure.name, figure.tuned),
                "change": shown_with_interval(figure.name, figure.change, sign=True),
                "state": "worse" if worse else "changed" if figure.changed else "",
                "units": f"{figure.units:,} {figure.unit}",
            }
        )
    return {name: sections[name] for name in SECTIONS if name in sections}


def drawing(figures: Sequence[Figure], name: str) -> Drawing:
    """The figures of one name side by side: bars with their intervals, layer by layer or matrix by matrix."""
    own = [figure for figure in figures if figure.name == name]
    with figure_style():
        figure = Drawing(figsize=(7, 2.4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(own))
        values = np.array([f.tuned.value for f in own])
        axes.bar(places, values, color=COLOURS[0], alpha=0.75, width=0.7)
        if len({f.units for f in own} - {1}):
            ends = np.array([(f.tuned.low, f.tuned.high) for f in own]).T
            axes.vlines(places, *ends, color=MUTED, linewidth=1.2)
        every = -(-len(own) // 12)
        labels = [f.on.removeprefix("layer ") for f in own]
        long = max(map(len, labels)) > 4
        axes.set_xticks(
            places[::every], labels[::every], rotation=30 if long else 0, ha="right" if long else "center",
            fontsize=7 if long else 9, parse_math=False,
        )  # fmt: skip
        axes.set_ylim(0, max(values.max() * 1.1, 1e-9))
        axes.grid(visible=False, axis="x")
    return figure
