"""HumanEval and MBPP as benchmarks: written functions, judged by running them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import (
    Benchmark,
    PromptSettings,
    check_completions,
    complete,
    save_rows,
    source_of,
)
from balora.evaluation.code import Problem, isolation, load_humaneval, load_mbpp, score_code
from balora.evaluation.metric import Definition, Units, mean

FUNCTION = "Complete this Python function:\n\n```python\n{prompt}\n```"
#: Task ids of MBPP's test set (Austin et al. 2021, section 2.1).
MBPP_TEST = range(11, 511)


@dataclass(frozen=True)
class Tasks:
    """Programming problems, the instruction of each for an instructed model, and the longest completion."""

    problems: Sequence[Problem]
    instructions: Sequence[str]
    max_new_tokens: int

    def asked(self, prompts: PromptSettings) -> list[str]:
        """Return the prompts of the problems: instructions, or code to continue."""
        if prompts.instructed:
            return [prompts.format_prompt(instruction) for instruction in self.instructions]
        return [problem.prompt for problem in self.problems]


def _read_humaneval(
    *,
    file: str | None = None,
    max_samples: int | None = None,
    max_new_tokens: int = 512,
    confirm_run_unsafe_code: bool = False,
) -> Tasks:
    """Read HumanEval's problems, of which each gets one greedy completion.

    Args:
        file: The dataset; `None` for the Hub's.
        max_samples: The first so many problems.
        max_new_tokens: Longest completion.
        confirm_run_unsafe_code: Confirm that code is run that a model wrote and that no person has read.
    """
    _check_confirmed(confirm_run_unsafe_code)
    source, hub = source_of("humaneval", file)
    problems = load_humaneval(source, **hub)[:max_samples]
    return Tasks(problems, [FUNCTION.format(prompt=problem.prompt) for problem in problems], max_new_tokens)


def _read_mbpp(
    *,
    file: str | None = None,
    max_samples: int | None = None,
    max_new_tokens: int = 512,
    confirm_run_unsafe_code: bool = False,
) -> Tasks:
    """Read the 500 test problems of MBPP. Without a template, the paper's own prompt is continued.

    Args:
        file: The dataset; `None` for the Hub's.
        max_samples: The first so many problems.
        max_new_tokens: Longest completion.
        confirm_run_unsafe_code: See `humaneval`.
    """
    _check_confirmed(confirm_run_unsafe_code)
    source, hub = source_of("mbpp", file)
    problems = [problem for problem in load_mbpp(source, **hub) if int(problem.name.split("/")[1]) in MBPP_TEST]
    problems = problems[:max_samples]
    return Tasks(problems, [problem.prompt.removesuffix("\n[BEGIN]\n") for problem in problems], max_new_tokens)


def _check_confirmed(confirmed: bool) -> None:
    if not confirmed:
        raise BALoraError(
            "it runs code that a model wrote and nobody has read, confined as far as this machine can; set "
            "confirm_run_unsafe_code: true to have it run"
        )
    isolation()  # raises where a program cannot be confined


def _ask(model: PreTrainedModel, tasks: Tasks, prompts: PromptSettings) -> list[dict[str, Any]]:
    """Return each completion with its prompt, whether it passed, and how it ended."""
    asked = tasks.asked(prompts)
    written = complete(model, asked, prompts, tasks.max_new_tokens)
    scores = score_code(tasks.problems, [[text] for text in written], confirm_run_unsafe_code=True)["problems"]
    return [
        {"name": problem.name, "prompt": prompt, "completion": text, **scores[problem.name][0]}
        for problem, prompt, text in zip(tasks.problems, asked, written, strict=True)
    ]


def _metrics(name: str, _: Tasks, completions: Sequence[dict[str, Any]]) -> dict[str, Units]:
    return {f"{name}_pass@1": mean([completion["passed"] for completion in completions])}


def _save(name: str, _: Tasks, completions: Sequence[dict[str, Any]], directory: Path) -> None:
    save_rows(directory / f"{name}.jsonl", completions)


HUMANEVAL = Benchmark(
    name="humaneval",
    title="HumanEval",
    read=_read_humaneval,
    ask=_ask,
    metrics=partial(_metrics, "humaneval"),
    check=check_completions,
    save=partial(_save, "humaneval"),
    unit="problems",
    definitions={
        "humaneval_pass@1": Definition(
            "higher", "Share of HumanEval's functions whose one completion passes the tests."
        )
    },
)

MBPP = Benchmark(
    name="mbpp",
    title="MBPP",
    read=_read_mbpp,
    ask=_ask,
    metrics=partial(_metrics, "mbpp"),
    check=check_completions,
    save=partial(_save, "mbpp"),
    unit="problems",
    definitions={
        "mbpp_pass@1": Definition("higher", "Share of MBPP's test problems whose one completion passes the tests.")
    },
)
