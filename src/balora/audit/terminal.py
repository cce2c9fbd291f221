"""The audit's figures on the terminal."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from balora.audit.definitions import DEFINITIONS
from balora.audit.figures import Figure
from balora.audit.page import shown, shown_change, shown_interval


def audit_table(figures: Sequence[Figure]) -> Table:
    """A row for each figure that a table has; changes beyond the noise of the items in bold."""
    compared = any(figure.base is not None for figure in figures)
    table = Table(title_justify="left")
    for name in ("figure", "on", *(("base", "tuned", "change") if compared else ("value",))):
        table.add_column(name, justify="left" if name in ("figure", "on") else "right")
    for figure in figures:
        if figure.name not in DEFINITIONS:
            continue
        title, on = DEFINITIONS[figure.name].title, escape(figure.on)
        tuned = shown(figure.name, figure.tuned.value)
        if not compared:
            table.add_row(title, on, f"{tuned} {escape(shown_interval(figure.name, figure.tuned))}")
            continue
        base = "" if figure.base is None else shown(figure.name, figure.base.value)
        change = ""
        if figure.change is not None:
            change = f"{shown_change(figure)} {escape(shown_interval(figure.name, figure.change))}"
        table.add_row(title, on, base, tuned, f"[bold]{change}[/bold]" if figure.changed else change)
    return table
