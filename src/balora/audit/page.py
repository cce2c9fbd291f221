"""The audit as one HTML file: what was kept, lost and skewed, each metric with its interval and definition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from balora import report
from balora.audit.metrics import Estimate, Metric
from balora.audit.settings import AuditSettings
from balora.audit.verdicts import DRAWN, HEADINGS, WORSE, title_of, verdict_of
from balora.evaluation.metric import ENOUGH_UNITS, SECTIONS, Definition
from balora.report.glossary import GLOSSARY
from balora.report.page import versions
from balora.report.style import COLOURS, MUTED, figure_style, figure_svg


def write_audit_page(
    path: str | Path, *, settings: AuditSettings, kind: str, metrics: Sequence[Metric], notes: Sequence[str]
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        settings: Settings of the audit, shown as they are.
        kind: Kind of model.
        metrics: Metrics in the order of their measurement.
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
        findings=findings(metrics),
        notes=notes,
        sections=_sections(metrics),
        drawings=[
            (caption, Markup(figure_svg(drawing(metrics, name), name)))
            for name, caption in DRAWN.items()
            if any(metric.name == name and metric.tuned.value > 0 for metric in metrics)
        ],
        versions=versions(),
        enough=ENOUGH_UNITS,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def findings(metrics: Sequence[Metric]) -> dict[str, list[str]]:
    """Return the changes beyond the noise of the items, in words, by the heading of their verdict."""
    found: dict[str, list[str]] = {heading: [] for heading in HEADINGS}
    for metric in metrics:
        verdict = verdict_of(metric, metrics)
        if verdict is None:
            continue
        title = title_of(metric.name)
        on = f", on {metric.on}," if metric.on and metric.on not in title else ""
        reason = f", {verdict.reason}" if verdict.reason else ""
        found[verdict.heading].append(
            f"{title}{on} {'rose' if metric.change.value > 0 else 'fell'} from "
            f"{shown(metric.name, metric.base.value)} to {shown(metric.name, metric.tuned.value)}{reason}"
        )
    return {heading: texts for heading, texts in found.items() if texts}


def shown(name: str, value: float) -> str:
    """Format a value with its metric's decimals, none from 1,000 up, or two significant digits if it is small."""
    if np.isnan(value):
        return "–"
    entry = GLOSSARY.get(name)
    decimals = 0 if abs(value) >= 1000 else 3 if entry is None else entry.decimals
    return f"{value:.2g}" if 0 < abs(value) < 10**-decimals else f"{value:,.{decimals}f}"


def shown_interval(name: str, estimate: Estimate) -> str:
    """Format the interval in brackets; empty if it is NaN."""
    return "" if np.isnan(estimate.low) else f"[{shown(name, estimate.low)}, {shown(name, estimate.high)}]"


def shown_change(metric: Metric) -> str:
    """Format the change with its sign."""
    if metric.change is None:
        return ""
    return f"{'+' if metric.change.value > 0 else ''}{shown(metric.name, metric.change.value)}"


def _state(metric: Metric, metrics: Sequence[Metric]) -> str:
    """Return the style of a change in the table: `worse`, `changed`, or none if its interval has 0 in it."""
    verdict = verdict_of(metric, metrics)
    return "" if verdict is None else "worse" if verdict.heading == WORSE else "changed"


def _sections(metrics: Sequence[Metric]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each section's table, by heading."""
    sections: dict[str, list[dict[str, Any]]] = {}
    for metric in metrics:
        if metric.name in DRAWN:
            continue
        cells = {
            name: ""
            if estimate is None
            else (shown(metric.name, estimate.value), shown_interval(metric.name, estimate))
            for name, estimate in (("base", metric.base), ("tuned", metric.tuned), ("change", metric.change))
        }
        if metric.change is not None:
            cells["change"] = (shown_change(metric), cells["change"][1])
        entry = GLOSSARY.get(metric.name, Definition(None, "It has no definition."))
        row = {
            "title": title_of(metric.name),
            "text": entry.formula or entry.definition,
            "better": entry.better,
            "on": metric.on,
            "state": _state(metric, metrics),
            "units": f"{metric.units:,} {metric.unit}",
            **cells,
        }
        sections.setdefault(entry.section, []).append(row)
    return {name: sections[name] for name in SECTIONS if name in sections}


def drawing(metrics: Sequence[Metric], name: str) -> Figure:
    """Draw the metrics of one name, not all 0, as bars with their intervals, layer by layer or matrix by matrix."""
    own = [metric for metric in metrics if metric.name == name]
    with figure_style():
        figure = Figure(figsize=(7, 2.4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(own))
        values = np.array([metric.tuned.value for metric in own])
        axes.bar(places, values, color=COLOURS[0], alpha=0.75, width=0.7)
        if len({metric.units for metric in own} - {1}):
            ends = np.array([(metric.tuned.low, metric.tuned.high) for metric in own]).T
            axes.vlines(places, *ends, color=MUTED, linewidth=1.2)
        every = -(-len(own) // 12)
        labels = [metric.on.removeprefix("layer ") for metric in own]
        long = max(map(len, labels)) > 4
        axes.set_xticks(
            places[::every], labels[::every], rotation=30 if long else 0, ha="right" if long else "center",
            fontsize=7 if long else 9, parse_math=False,
        )  # fmt: skip
        axes.set_ylim(0, np.nanmax(values) * 1.1)
        axes.grid(visible=False, axis="x")
    return figure
