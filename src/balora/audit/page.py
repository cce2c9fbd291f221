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
from balora.report.page import versions
from balora.report.style import COLOURS, MUTED, figure_style, figure_svg


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
        title=f"What became of {Path(settings.model).name}" if settings.adapter else f"Audit of {settings.model}",
        settings=settings,
        kind=kind,
        compared=settings.adapter is not None,
        findings=findings(figures),
        notes=notes,
        sections=_sections(figures),
        definitions=DEFINITIONS,
        drawings=[
            (caption, Markup(figure_svg(drawing(figures, name), name)))
            for name, caption in DRAWN.items()
            if any(figure.name == name and figure.tuned.value > 0 for figure in figures)
        ],
        versions=versions(),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def findings(figures: Sequence[Figure]) -> dict[str, list[str]]:
    """The changes that are beyond the noise of the items, in words: those for the worse, neither, for the better."""
    found: dict[str, list[str]] = {"For the worse": [], "Neither": [], "For the better": []}
    for figure in figures:
        definition = DEFINITIONS.get(figure.name)
        if definition is None or not figure.changed:
            continue
        rose = figure.change.value > 0
        verdict = "Neither"
        if definition.better:
            verdict = "For the worse" if _is_worse(figure) else "For the better"
        on = f", on {figure.on}," if figure.on and figure.on not in definition.title else ""
        found[verdict].append(
            f"{definition.title}{on} {'rose' if rose else 'fell'} from "
            f"{shown(figure.name, figure.base.value)} to {shown(figure.name, figure.tuned.value)}"
        )
    return {verdict: texts for verdict, texts in found.items() if texts}


def shown(name: str, value: float) -> str:
    """A value with its figure's decimals, none from a thousand on; two significant digits where they would hide it."""
    if np.isnan(value):
        return "–"
    decimals = DEFINITIONS[name].decimals if abs(value) < 1000 else 0
    return f"{value:.2g}" if 0 < abs(value) < 10**-decimals else f"{value:,.{decimals}f}"


def shown_interval(name: str, estimate: Estimate) -> str:
    """The interval in brackets, empty where there is none."""
    return "" if np.isnan(estimate.low) else f"[{shown(name, estimate.low)}, {shown(name, estimate.high)}]"


def shown_change(figure: Figure) -> str:
    """The change with its sign."""
    if figure.change is None:
        return ""
    return f"{'+' if figure.change.value > 0 else ''}{shown(figure.name, figure.change.value)}"


def _is_worse(figure: Figure) -> bool:
    return DEFINITIONS[figure.name].better == ("lower" if figure.change.value > 0 else "higher")


def _sections(figures: Sequence[Figure]) -> dict[str, list[dict[str, Any]]]:
    """By heading, the rows of its table."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for figure in figures:
        definition = DEFINITIONS.get(figure.name)
        if definition is None:
            continue
        cells = {
            name: ""
            if estimate is None
            else (shown(figure.name, estimate.value), shown_interval(figure.name, estimate))
            for name, estimate in (("base", figure.base), ("tuned", figure.tuned), ("change", figure.change))
        }
        if figure.change is not None:
            cells["change"] = (shown_change(figure), cells["change"][1])
        state = "" if not figure.changed else "worse" if definition.better and _is_worse(figure) else "changed"
        units = f"{figure.units:,} {figure.unit}"
        row = {"definition": definition, "on": figure.on, "state": state, "units": units, **cells}
        sections.setdefault(definition.section, []).append(row)
    return {name: sections[name] for name in SECTIONS if name in sections}


def drawing(figures: Sequence[Figure], name: str) -> Drawing:
    """The figures of one name side by side, not all 0: bars with their intervals, layer by layer, matrix by matrix."""
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
        axes.set_ylim(0, np.nanmax(values) * 1.1)
        axes.grid(visible=False, axis="x")
    return figure
