"""Verdicts in words: which method learned the task best, which keeps most, and how others compare to a baseline.

A verdict rests on all metrics of its kind that were measured, names each, and judges each lead by the paired
difference that the sentences on single methods use (docs/decisions/comparing.md).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from balora.errors import BALoraError
from balora.evaluation.metric import ENOUGH_UNITS
from balora.report.glossary import FURTHER_SETS, better_direction, format_value
from balora.report.paired import ENOUGH_PAIRS, paired_difference, sentence, too_few
from balora.report.results import PRETRAINED, Run, TaskMetric, evaluated_rows, tasks_of
from balora.report.summary import TaskSummary

#: Metrics of how well the task is learned.
LEARNED = (
    *("task_accuracy", "accuracy", "minority_recall", "matthews", "pearson", "spearman", "em", "f1", "semsim"),
    "eval_loss",
)
#: Metrics of what remains of the pretrained model.
KEPT = (
    *("perplexity", "word_perplexity", "kl_to_base", "mse_to_base", "top1_agreement", "representation_shift"),
    *("linear_cka", "fact_recall", "rare_fact_recall", "attribute_recall", "single_em"),
)


@dataclass(frozen=True)
class Lead:
    """The fine-tuned methods with the best mean of a metric, and how reliable their lead is.

    Attributes:
        metric: Name of the metric.
        methods: Methods with the best mean; several if they are equal.
        noise: Methods from which the paired difference is within noise: its 95 % interval has 0 in it.
        small: Methods from which the difference is too small to matter.
        pairs: Fewest seeds that the lead over another method rests on; None if all methods are equal.
    """

    metric: str
    methods: tuple[str, ...]
    noise: tuple[str, ...]
    small: tuple[str, ...]
    pairs: int | None

    @property
    def remark(self) -> str:
        """The limits of the lead in words, besides the number of seeds; empty if there are none."""
        parts = [f"within noise of {listing(self.noise)}"] if self.noise else []
        parts += [f"too close to {listing(self.small)} to matter"] if self.small else []
        return "; ".join(parts)


def lead_of(summary: TaskSummary, metric: str) -> Lead | None:
    """Return the lead in a metric, or None if fewer than two methods have it or its better direction is unknown."""
    direction = better_direction(metric)
    means = {
        row.method: row.metrics[metric].mean
        for row in summary.methods
        if row.method != PRETRAINED and metric in row.metrics
    }
    if direction is None or len(means) < 2:
        return None
    sign = 1 if direction == "higher" else -1
    best = max(sign * mean for mean in means.values())
    ahead = tuple(method for method, mean in means.items() if abs(sign * mean - best) < 1e-12)
    noise, small, pairs = [], [], []
    for rival in means:
        if rival in ahead:
            continue
        difference = paired_difference(summary.runs, ahead[0], rival, metric)
        pairs.append(0 if difference is None else difference.pairs)
        if difference is None:
            continue
        if sign * difference.mean <= 0 or (difference.low is not None and not difference.excludes_zero):
            noise.append(rival)
        elif difference.small:
            small.append(rival)
    return Lead(metric, ahead, tuple(noise), tuple(small), min(pairs, default=None))


def headline(summary: TaskSummary, task_metric: str, drift_metric: str) -> str:
    """Return sentences on which fine-tuned methods do best on the task, and which keep most of the model.

    Each rests on every metric of its kind in the summary, `task_metric` and `drift_metric` first.
    """
    kept = measured_of(KEPT, summary, first=drift_metric) if base_name(drift_metric) in KEPT else [drift_metric]
    learned = [name for name in measured_of(LEARNED, summary, first=task_metric) if name not in kept]
    praise = (
        "keeps most of the original model" if base_name(drift_metric) in KEPT else "does best in the second measure"
    )
    leads = [[lead for name in names if (lead := lead_of(summary, name))] for names in (learned, kept)]
    if not any(leads):
        return f"On {summary.task} there are too few results to compare methods by {task_metric} or {drift_metric}."
    claims = [
        _claim(summary, found, said)
        for found, said in zip(leads, ("does best on the task", praise), strict=True)
        if found
    ]
    text = f"On {summary.task}, {'; '.join(claims)}{_against_pretrained(summary, task_metric)}."
    rows = evaluated_rows(summary.runs)
    if rows is not None and rows < ENOUGH_UNITS:
        return f"{text} {too_few(rows)} to tell methods apart."
    measured = "" if rows is None else f"Evaluated on {rows:,} rows."
    return " ".join(part for part in (text, _on_seeds([*leads[0], *leads[1]]), measured) if part)


def measured_of(kind: Sequence[str], summary: TaskSummary, *, first: str) -> list[str]:
    """Return the summary's metrics of a kind, on any evaluation set; `first` leads, whatever its kind."""
    return list(dict.fromkeys([first, *(name for name in summary.metrics if base_name(name) in kind)]))


def base_name(metric: str) -> str:
    """Return a metric's name without the ending of a further evaluation set."""
    for suffix in FURTHER_SETS:
        metric = metric.removesuffix(suffix)
    return metric


def _claim(summary: TaskSummary, leads: Sequence[Lead], praise: str) -> str:
    """Return which methods lead by which metrics, the method that leads in the first metric first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for index, lead in enumerate(leads):
        value = next(row.metrics[lead.metric] for row in summary.methods if row.method == lead.methods[0])
        remarks = [format_value(lead.metric, value.mean, value.sd)] if index == 0 else []
        remarks += [lead.remark] if lead.remark else []
        groups.setdefault(lead.methods, []).append(lead.metric + (f" ({'; '.join(remarks)})" if remarks else ""))
    first = set(leads[0].methods)
    if any(first.isdisjoint(methods) for methods in groups):
        found = (f"{listing(methods)} by {listing(metrics)}" for methods, metrics in groups.items())
        return f"which method {praise} depends on the metric: {', '.join(found)}"
    said = [
        f"{listing(methods)} {praise if len(methods) == 1 else 'are equal'} by {listing(metrics)}"
        for methods, metrics in groups.items()
    ]
    return ", ".join(said)


def _on_seeds(leads: Sequence[Lead]) -> str:
    """Return what the number of seeds lets the leads without a remark prove."""
    judged = [lead for lead in leads if lead.pairs is not None]
    if any(lead.pairs < 2 for lead in judged):
        return "Without two seeds of every method in common, a lead may be chance."
    unlimited = [lead for lead in judged if not lead.remark]
    if not unlimited:
        return ""
    pairs = min(lead.pairs for lead in unlimited)
    if pairs < ENOUGH_PAIRS:
        return f"{pairs} seeds are too few to rule out chance."
    return f"Leads without a remark are clear: over {pairs} seeds their 95 % intervals exclude 0."


def _against_pretrained(summary: TaskSummary, metric: str) -> str:
    """Return a remark if no method improved on the pretrained model, or else an empty text."""
    best = summary.best.get(metric)
    untouched = next((row.metrics.get(metric) for row in summary.methods if row.method == PRETRAINED), None)
    if best is None or untouched is None:
        return ""
    gain = best.value.mean - untouched.mean
    improved = gain > 0 if better_direction(metric) == "higher" else gain < 0
    value = format_value(metric, untouched.mean)
    return "" if improved else f"; no method improved on the untouched model by {metric} ({value})"


def baseline_of(runs: Sequence[Run], baseline: str | None) -> str | None:
    """Return the method to compare the others with: `baseline`, or else the first fine-tuned method if there is one.

    Raises:
        BALoraError: `baseline` has no runs, or is the pretrained model, which has no seeds to pair.
    """
    methods = dict.fromkeys(run.method for run in runs if run.method != PRETRAINED)
    if baseline is not None and baseline not in methods:
        raise BALoraError(
            f"baseline: {baseline!r} is not a fine-tuned method of this study; use one of {', '.join(methods)}"
        )
    return baseline or next(iter(methods), None)


def comparisons(runs: Sequence[Run], task_metric: TaskMetric, baseline: str) -> list[str]:
    """Return a sentence per other fine-tuned method: its paired difference to the baseline over all tasks.

    A single task with a single seed has no sentences, since its table already shows the difference.
    """
    methods = dict.fromkeys(run.method for run in runs if run.method not in (PRETRAINED, baseline))
    found = [paired_difference(runs, method, baseline, task_metric) for method in methods]
    several = len(tasks_of(runs)) > 1
    return [sentence(difference) for difference in found if difference and (several or difference.low is not None)]


def listing(names: Iterable[str]) -> str:
    """Join names with commas and a final "and"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last
