"""GSM8K and MATH: written solutions, whose answers are compared as mathematics."""

from collections.abc import Callable
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel

from balora.data import load_table
from balora.evaluation.benchmarks.writing import Benchmark, Writing, keep, where, writer
from balora.evaluation.maths import grade_maths, gsm8k_rows, math_rows


def gsm8k(
    writing: Writing, *, file: str | None = None, max_samples: int | None = None, max_new_tokens: int = 512
) -> Benchmark:
    """GSM8K's test set: share of right answers, and of texts without one.

    Args:
        writing: How the model is asked.
        file: The set; `None` for the Hub's.
        max_samples: The first so many problems.
        max_new_tokens: Longest solution.
    """
    return _maths("gsm8k", gsm8k_rows, writing, file, max_samples, max_new_tokens)


def math(
    writing: Writing, *, file: str | None = None, max_samples: int | None = None, max_new_tokens: int = 1024
) -> Benchmark:
    """MATH, of which MATH-500 is the usual sample: as `gsm8k`."""
    return _maths("math", math_rows, writing, file, max_samples, max_new_tokens)


def _maths(
    name: str,
    read: Callable[..., Dataset],
    writing: Writing,
    file: str | None,
    max_samples: int | None,
    max_new_tokens: int,
) -> Benchmark:
    source, hub = where(name, file)
    rows = read(load_table(source, **hub), source=source)
    rows = rows.select(range(min(len(rows), max_samples or len(rows))))
    asked = [writing.put(question) for question in rows["prompt"]]
    write = writer(writing, asked, max_new_tokens)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        written = write(model)
        grades = grade_maths(written, rows["answer"])
        kept = zip(asked, written, rows["answer"], grades, strict=True)
        keep(
            directory / f"{name}.jsonl",
            [{"prompt": p, "completion": c, "answer": a, "right": grade} for p, c, a, grade in kept],
        )
        return {
            f"{name}_accuracy": grades.count(True) / len(grades),
            f"{name}_unanswered": grades.count(None) / len(grades),
        }

    return measure
