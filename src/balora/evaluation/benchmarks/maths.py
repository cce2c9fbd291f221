"""GSM8K and MATH as benchmarks: written solutions, whose answers are compared as mathematics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel

from balora.data import load_table
from balora.evaluation.benchmarks.benchmark import (
    Benchmark,
    PromptSettings,
    check_completions,
    complete,
    save_rows,
    source_of,
)
from balora.evaluation.maths import grade_maths, gsm8k_rows, math_rows
from balora.evaluation.metric import Definition, Units, mean


@dataclass(frozen=True)
class Exercises:
    """Questions with their answers, and the tokens of the longest solution."""

    questions: Sequence[str]
    answers: Sequence[str]
    max_new_tokens: int

    def asked(self, prompts: PromptSettings) -> list[str]:
        """Return the prompts of the questions."""
        return [prompts.format_prompt(question) for question in self.questions]


@dataclass(frozen=True)
class Solution:
    """A solution that a model wrote: `right` is `None` where it has no answer."""

    prompt: str
    completion: str
    right: bool | None


def _read_gsm8k(*, file: str | None = None, max_samples: int | None = None, max_new_tokens: int = 512) -> Exercises:
    """Read GSM8K's test set.

    Args:
        file: The dataset; `None` for the Hub's.
        max_samples: The first so many problems.
        max_new_tokens: Longest solution.
    """
    return _exercises("gsm8k", gsm8k_rows, file, max_samples, max_new_tokens)


def _read_math(*, file: str | None = None, max_samples: int | None = None, max_new_tokens: int = 1024) -> Exercises:
    """Read MATH, of which MATH-500 is the usual sample.

    Args:
        file: The dataset; `None` for the Hub's MATH-500.
        max_samples: The first so many problems.
        max_new_tokens: Longest solution.
    """
    return _exercises("math", math_rows, file, max_samples, max_new_tokens)


def _exercises(
    name: str, rows_of: Callable[..., Dataset], file: str | None, max_samples: int | None, max_new_tokens: int
) -> Exercises:
    source, hub = source_of(name, file)
    rows = rows_of(load_table(source, **hub), source=source)
    return Exercises(rows["prompt"][:max_samples], rows["answer"][:max_samples], max_new_tokens)


def _ask(model: PreTrainedModel, exercises: Exercises, prompts: PromptSettings) -> list[Solution]:
    asked = exercises.asked(prompts)
    written = complete(model, asked, prompts, exercises.max_new_tokens)
    grades = grade_maths(written, exercises.answers)
    return [Solution(*solution) for solution in zip(asked, written, grades, strict=True)]


def _metrics(name: str, _: Exercises, solutions: Sequence[Solution]) -> dict[str, Units]:
    return {
        f"{name}_accuracy": mean([solution.right is True for solution in solutions]),
        f"{name}_unanswered": mean([solution.right is None for solution in solutions]),
    }


def _save(name: str, exercises: Exercises, solutions: Sequence[Solution], directory: Path) -> None:
    rows = [
        {"prompt": own.prompt, "completion": own.completion, "answer": answer, "right": own.right}
        for own, answer in zip(solutions, exercises.answers, strict=True)
    ]
    save_rows(directory / f"{name}.jsonl", rows)


GSM8K = Benchmark(
    name="gsm8k",
    title="GSM8K",
    read=_read_gsm8k,
    ask=_ask,
    metrics=partial(_metrics, "gsm8k"),
    check=check_completions,
    save=partial(_save, "gsm8k"),
    unit="problems",
    definitions={
        "gsm8k_accuracy": Definition("higher", "Share of GSM8K's word problems solved."),
        "gsm8k_unanswered": Definition("lower", "Share of GSM8K's problems to which the text had no answer at all."),
    },
)

MATH = Benchmark(
    name="math",
    title="MATH",
    read=_read_math,
    ask=_ask,
    metrics=partial(_metrics, "math"),
    check=check_completions,
    save=partial(_save, "math"),
    unit="problems",
    definitions={
        "math_accuracy": Definition("higher", "Share of MATH's competition problems solved."),
        "math_unanswered": Definition("lower", "Share of MATH's problems to which the text had no answer at all."),
    },
)
