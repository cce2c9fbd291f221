"""Which metric tells how well a task was learned: one name for all tasks, or a name for each."""

from collections.abc import Iterable, Mapping

from balora.errors import BALoraError
from balora.report.glossary import better_direction
from balora.report.results import Run

TaskMetric = str | Mapping[str, str]
"""A metric for every task alike, or task to metric, as GLUE has it (CoLA matthews, STS-B pearson, others accuracy)."""


def metric_for(task: str, metric_of: TaskMetric) -> str:
    """The metric of one task.

    Raises:
        BALoraError: `metric_of` names metrics by task, and this task is not among them.
    """
    if isinstance(metric_of, str):
        return metric_of
    if task not in metric_of:
        raise BALoraError(f"task_metric names no metric for task {task!r}: it has {', '.join(metric_of) or 'none'}.")
    return metric_of[task]


def tasks_of(runs: Iterable[Run]) -> list[str]:
    """Names of the tasks, in order of first appearance."""
    return list(dict.fromkeys(run.task for run in runs))


def mean_metric(metrics: Iterable[str]) -> str | None:
    """What a mean over tasks with these metrics is called: their one name, else `score`.

    Returns:
        None where such a mean would say nothing, because better lies up for some of them and down for others.
    """
    names = set(metrics)
    if len({better_direction(name) for name in names}) != 1:
        return None
    return names.pop() if len(names) == 1 else "score"
