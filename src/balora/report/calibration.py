"""A calibration as a table for the terminal: how much each regularizer pulls now, and how much it should weigh."""

from rich import box
from rich.table import Table
from rich.text import Text

from balora.model.calibration import Calibration

COLUMNS = ("gradient", "weight now", "share now", "weight", "share")


def calibration_table(calibration: Calibration) -> Table:
    """A row per term: norm of its unweighted gradient, then weight and share of the task's gradient, before and after.

    Terms that could not be calibrated have a dash, and their reason below the table.
    """
    legend = [
        "Gradient: norm over the trained parameters, unweighted. Share: that of the weighted term over the task's.",
        *(f"{term}: {reason}." for term, reason in calibration.reasons.items()),
    ]
    table = Table(title=Text("calibration"), caption=Text("\n".join(legend)), caption_justify="left")
    table.box = box.SIMPLE_HEAD
    table.add_column("")
    for title in COLUMNS:
        table.add_column(title, justify="right")
    task = calibration.norms["task"]
    table.add_row("task", f"{task:.3g}", *[""] * (len(COLUMNS) - 1))
    for term, weight in calibration.weights.items():
        norm, present = calibration.norms[term], calibration.present[term]
        new = ("–", "–") if weight is None else (f"{weight:.3g}", f"{weight * norm / task:.3g}")
        table.add_row(term, f"{norm:.3g}", f"{present:.3g}", f"{present * norm / task:.3g}", *new)
    return table
