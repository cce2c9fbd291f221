"""The sentences a reader should leave with: who wins, who kept most, and whether the seeds can tell."""

from collections.abc import Sequence

from balora.errors import BALoraError
from balora.report.glossary import better_direction, format_value
from balora.report.paired import paired_difference, sentence
from balora.report.results import PRETRAINED, Run
from balora.report.summary import TaskSummary
from balora.report.task_metric import TaskMetric, tasks_of

#: Metrics of what is left of the pretrained model; any other on the drift axis is a second measure of the task.
KEPT = {
    *("perplexity", "kl_to_base", "mse_to_base", "top1_agreement", "representation_shift", "linear_cka"),
    *("fact_recall", "attribute_recall", "single_em"),
}


def headline(summary: TaskSummary, task_metric: str, drift_metric: str) -> str:
    """Say in plain words which fine-tuned method leads in `task_metric` and which in `drift_metric`."""
    task = _lead(summary, task_metric, "does best on the task")
    kept = drift_metric in KEPT
    drift = _lead(
        summary, drift_metric, "keeps most of the original model" if kept else "does best in the second measure"
    )
    if task is None and drift is None:
        return f"On {summary.task} there are too few results to compare methods by {task_metric} or {drift_metric}."
    claims = f"On {summary.task}, " + "; ".join(part for part in (task, drift) if part)
    return claims + _against_pretrained(summary, task_metric) + "."


def baseline_of(runs: Sequence[Run], baseline: str | None) -> str | None:
    """The method that others are compared with: `baseline`, or else the first fine-tuned one, if there is any.

    Raises:
        BALoraError: No run is of `baseline`, or it is the untouched model, which has no seeds to pair.
    """
    methods = dict.fromkeys(run.method for run in runs if run.method != PRETRAINED)
    if baseline is not None and baseline not in methods:
        raise BALoraError(
            f"baseline must be a fine-tuned method of this study ({', '.join(methods)}): {baseline!r} is none."
        )
    return baseline or next(iter(methods), None)


def comparisons(runs: Sequence[Run], task_metric: TaskMetric, baseline: str) -> list[str]:
    """A sentence for every other fine-tuned method: its paired difference to the baseline over all tasks.

    Of a single task with a single seed nothing is said that its table does not show.
    """
    methods = dict.fromkeys(run.method for run in runs if run.method not in (PRETRAINED, baseline))
    found = [paired_difference(runs, method, baseline, task_metric) for method in methods]
    several = len(tasks_of(runs)) > 1
    return [sentence(difference) for difference in found if difference and (several or difference.low is not None)]


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
