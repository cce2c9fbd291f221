"""`results.json`: the file that carries a study from training to every table, figure and page.

One record per trained model and task. The JSON is strict, so any program can read it: a number that training or
scoring could not produce (NaN, infinite) is written as null and read back as NaN.
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from balora.data.columns import shortened
from balora.errors import BALoraError
from balora.report.glossary import better_direction
from balora.utils.files import write_text

PRETRAINED = "pretrained"
"""The method name of the pretrained model, before any fine-tuning."""


@dataclass(frozen=True)
class Run:
    """One trained model and its scores.

    Attributes:
        method: Name of the fine-tuning method, or `PRETRAINED`.
        seed: Seed of this run.
        task: Name of the task it was trained and scored on.
        metrics: Metric name to value; NaN if scoring gave no number.
        train_seconds: Wall-clock training time in seconds.
        peak_memory_mb: Peak memory in MB.
        trainable_parameters: Number of parameters that were trained.
        intervals: Metric name to the ends of its 95 % interval over a benchmark's items, where it has one.
        rows: Number of rows by dataset (`train`, `validation` …), as they were used; empty in files of earlier
            versions, and without `train` for a stream.
    """

    method: str
    seed: int
    task: str
    metrics: dict[str, float]
    train_seconds: float
    peak_memory_mb: float
    trainable_parameters: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`task-method-seed`, the key of this run's training history."""
        return f"{self.task}-{self.method}-{self.seed}"


def read_results(path: str | Path) -> list[Run]:
    """Read the runs of a study; unknown keys of a record are ignored.

    Raises:
        BALoraError: The file is unreadable, not strict JSON or of another shape, or repeats a task, method and seed.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except OSError as error:
        raise BALoraError(f"{path}: the results cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise BALoraError(f"{path}: not strict JSON in UTF-8: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("runs"), list):
        raise BALoraError(f'{path}: expected an object with a list under "runs".')

    runs: dict[tuple[str, str, int], Run] = {}
    for index, record in enumerate(content["runs"]):
        where = f"{path}: runs[{index}]"
        run = run_from(record, where)
        key = (run.task, run.method, run.seed)
        if key in runs:
            raise BALoraError(f"{where} repeats method {run.method!r} with seed {run.seed} on task {run.task!r}.")
        runs[key] = run
    return list(runs.values())


def write_results(path: str | Path, runs: Iterable[Run]) -> None:
    """Write the runs of a study atomically; missing folders are created."""
    path = Path(path)
    records = [asdict(run) for run in runs]
    for record in records:
        record["metrics"] = {
            name: value if math.isfinite(value) else None for name, value in record["metrics"].items()
        }
    text = json.dumps({"runs": records}, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value, write null")


def run_from(record: Any, where: str) -> Run:
    """Build a `Run` from its JSON object; null becomes NaN.

    Args:
        record: The parsed JSON.
        where: File and position, for error messages.

    Raises:
        BALoraError: A field is missing or has the wrong type.
    """
    if not isinstance(record, dict):
        raise BALoraError(f"{where} must be an object.")
    metrics = record.get("metrics")
    if not isinstance(metrics, dict):
        raise BALoraError(f"{where}.metrics must be an object of numbers, got {shortened(metrics)}.")
    return Run(
        method=_text(record, "method", where),
        seed=_integer(record, "seed", where),
        task=_text(record, "task", where),
        metrics={
            name: math.nan if value is None else _number(metrics, name, f"{where}.metrics")
            for name, value in metrics.items()
        },
        train_seconds=_number(record, "train_seconds", where),
        peak_memory_mb=_number(record, "peak_memory_mb", where),
        trainable_parameters=_integer(record, "trainable_parameters", where),
        intervals=_intervals(record.get("intervals", {}), f"{where}.intervals"),
        rows=_rows(record.get("rows", {}), f"{where}.rows"),
    )


def _intervals(value: Any, where: str) -> dict[str, tuple[float, float]]:
    """Validate intervals, which files of earlier versions do not have."""
    if not isinstance(value, dict) or not all(isinstance(ends, list) and len(ends) == 2 for ends in value.values()):
        raise BALoraError(f"{where} must be an object of [low, high] pairs, got {shortened(value)}.")
    return {
        name: tuple(_number({"low": low, "high": high}, end, f"{where}.{name}") for end in ("low", "high"))
        for name, (low, high) in value.items()
    }


def _rows(value: Any, where: str) -> dict[str, int]:
    """Validate numbers of rows, which files of earlier versions do not have."""
    if not isinstance(value, dict):
        raise BALoraError(f"{where} must be an object of whole numbers, got {shortened(value)}.")
    return {name: _integer(value, name, where) for name in value}


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value:
        raise BALoraError(f"{where}.{field} must be a non-empty text, got {shortened(value)}.")
    return value


def _integer(record: dict[str, Any], field: str, where: str) -> int:
    value = record.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BALoraError(f"{where}.{field} must be a whole number, got {shortened(value)}.")
    return value


def _number(record: dict[str, Any], field: str, where: str) -> float:
    value = record.get(field)
    # `1e999` is valid JSON that Python reads as infinity.
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
        raise BALoraError(f"{where}.{field} must be a finite number, got {shortened(value)}.")
    return float(value)


TaskMetric = str | Mapping[str, str]
"""One metric for all tasks, or task to metric as in GLUE (CoLA matthews, STS-B pearson, others accuracy)."""


def metric_for(task: str, metric_of: TaskMetric) -> str:
    """Return the metric of one task.

    Raises:
        BALoraError: `metric_of` is a mapping without this task.
    """
    if isinstance(metric_of, str):
        return metric_of
    if task not in metric_of:
        raise BALoraError(
            f"task_metric: no metric for task {task!r}; it has one for {', '.join(metric_of) or 'no task'}"
        )
    return metric_of[task]


def evaluated_rows(runs: Iterable[Run]) -> int | None:
    """Return the fewest validation rows that runs were evaluated on; None if they do not record it."""
    return min((run.rows["validation"] for run in runs if "validation" in run.rows), default=None)


def tasks_of(runs: Iterable[Run]) -> list[str]:
    """Return the names of the tasks in order of first appearance."""
    return list(dict.fromkeys(run.task for run in runs))


def mean_metric(metrics: Iterable[str]) -> str | None:
    """Return the name of a mean over tasks with these metrics: the common name, or else `score`.

    Returns:
        None if higher is better for some of the metrics and lower for others, since their mean has no meaning.
    """
    names = set(metrics)
    if len({better_direction(name) for name in names}) != 1:
        return None
    return names.pop() if len(names) == 1 else "score"
