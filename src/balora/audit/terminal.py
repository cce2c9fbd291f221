"""The audit's metrics as a table on the terminal."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from balora.audit.metrics import Metric
from balora.audit.page import shown, shown_change, shown_interval
from balora.audit.verdicts import DRAWN, title_of


def audit_table(metrics: Sequence[Metric]) -> Table:
    """Return a table with a row for each metric that is not drawn; changes beyond the noise of the items are bold."""
    compared = any(metric.base is not None for metric in metrics)
    table = Table(title_justify="left")
    for name in ("figure", "on", *(("base", "tuned", "change") if compared else ("value",))):
        table.add_column(name, justify="left" if name in ("figure", "on") else "right")
    for metric in metrics:
        if metric.name in DRAWN:
            continue
        title, on = title_of(metric.name), escape(metric.on)
        tuned = shown(metric.name, metric.tuned.value)
        if not compared:
            table.add_row(title, on, f"{tuned} {escape(shown_interval(metric.name, metric.tuned))}")
            continue
        base = "" if metric.base is None else shown(metric.name, metric.base.value)
        change = ""
        if metric.change is not None:
            change = f"{shown_change(metric)} {escape(shown_interval(metric.name, metric.change))}"
        table.add_row(title, on, base, tuned, f"[bold]{change}[/bold]" if metric.changed else change)
    return table
