"""Tasks of lm-evaluation-harness as a benchmark."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from balora.data import expand_path
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings
from balora.evaluation.harness import check_tasks, evaluate_with_harness
from balora.evaluation.metric import Units, without_units


@dataclass(frozen=True)
class Tasks:
    """Names of tasks, and further arguments of `evaluate_with_harness`."""

    names: list[str]
    arguments: dict[str, Any]


def _read(
    *,
    tasks: list[str],
    data_dir: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    max_gen_toks: int | None = None,
) -> Tasks:
    """Check that lm-evaluation-harness has the tasks; the arguments are those of `evaluate_with_harness`."""
    data_dir = data_dir and expand_path(data_dir)
    check_tasks(tasks, data_dir)
    arguments = {"data_dir": data_dir, "limit": limit, "num_fewshot": num_fewshot, "max_gen_toks": max_gen_toks}
    return Tasks(tasks, arguments)


def _ask(model: PreTrainedModel, tasks: Tasks, prompts: PromptSettings) -> dict[str, dict[str, float]]:
    how = {"batch_size": prompts.batch_size, **tasks.arguments}
    return evaluate_with_harness(model, prompts.tokenizer, tasks.names, **how)


def _metrics(_: Tasks, found: dict[str, dict[str, float]]) -> dict[str, Units]:
    return without_units({f"{task}_{name}": value for task, own in found.items() for name, value in own.items()})


HARNESS = Benchmark(
    name="harness",
    title="lm-evaluation-harness",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    unit="set",  # the harness's own metrics, without an interval and without an entry in the glossary
)
