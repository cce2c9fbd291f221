"""The one sentence a reader should leave with: who wins the task, who kept most, and whether the seeds can tell."""

from balora.report.glossary import better_direction, format_value
from balora.report.results import PRETRAINED
from balora.report.summary import TaskSummary


def headline(summary: TaskSummary, task_metric: str, drift_metric: str) -> str:
    """Say in plain words which fine-tuned method leads in `task_metric` and which in `drift_metric`."""
    task = _lead(summary, task_metric, "does best on the task")
    drift = _lead(summary, drift_metric, "keeps most of the original model")
    if task is None and drift is None:
        return f"On {summary.task} there are too few results to compare methods by {task_metric} or {drift_metric}."
    sentence = f"On {summary.task}, " + "; ".join(part for part in (task, drift) if part)
    return sentence + _against_pretrained(summary, task_metric) + "."


def _lead(summary: TaskSummary, metric: str, praise: str) -> str | None:
    best = summary.best.get(metric)
    if best is None:
        return None
    claim = f"{best.method} {praise} ({metric} {format_value(metric, best.value.mean, best.value.sd)})"
    if best.rivals:
        return f"{claim}, but its lead over {_listing(best.rivals)} is within noise"
    if not best.spread_known:
        return f"{claim}, though without a spread over seeds this may be chance"
    return f"{claim}, by more than the spread over seeds"


def _against_pretrained(summary: TaskSummary, metric: str) -> str:
    """A remark for when fine-tuning did not even beat the untouched model."""
    best = summary.best.get(metric)
    untouched = next((row.metrics.get(metric) for row in summary.methods if row.method == PRETRAINED), None)
    if best is None or untouched is None:
        return ""
    gain = best.value.mean - untouched.mean
    improved = gain > 0 if better_direction(metric) == "higher" else gain < 0
    return "" if improved else f"; no method improved on the untouched model ({format_value(metric, untouched.mean)})"


def _listing(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
