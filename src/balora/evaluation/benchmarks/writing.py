"""How a model is asked, where benchmarks come from, and what is kept of its answers."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data import expand_path
from balora.evaluation.generation import check_room, generate_completions

#: Takes a model and the folder to keep its texts in; returns figures by name.
Benchmark = Callable[[PreTrainedModel, Path], dict[str, float]]

#: Where the Hub has a benchmark, and which part of it is the test set.
HUB: dict[str, tuple[str, dict[str, str]]] = {
    "gsm8k": ("openai/gsm8k", {"name": "main", "split": "test"}),
    "math": ("HuggingFaceH4/MATH-500", {"split": "test"}),
    "humaneval": ("openai/openai_humaneval", {"split": "test"}),
    "mbpp": ("google-research-datasets/mbpp", {"name": "full", "split": "test"}),
    "wikitext2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}),
}


@dataclass(frozen=True)
class Writing:
    """How a model is asked.

    Attributes:
        tokenizer: The model's.
        context: Tokens that it takes at once, `None` without a limit.
        put: From a question to the text that the model continues.
        instructed: Whether it is told what to do, rather than given a text to continue.
        batch_size: Questions at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int | None
    put: Callable[[str], str]
    instructed: bool
    batch_size: int


def where(name: str, file: str | None) -> tuple[str, dict[str, str]]:
    """`load_table`'s arguments: a file, or the Hub's set where none is named."""
    return (expand_path(file), {}) if file else HUB[name]


def writer(writing: Writing, asked: Sequence[str], max_new_tokens: int) -> Callable[[PreTrainedModel], list[str]]:
    """From a model to its greedy completion of each question.

    Raises:
        BALoraError: If a question and its completion are beyond the model's context.
    """
    check_room(writing.tokenizer, asked, max_new_tokens, writing.context)

    def write(model: PreTrainedModel) -> list[str]:
        return generate_completions(
            model, writing.tokenizer, asked, max_new_tokens=max_new_tokens, batch_size=writing.batch_size
        )

    return write


def keep_figures(file: Path, found: dict[str, Any]) -> None:
    """Write figures as JSON, into a folder that may not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1), encoding="utf-8")


def keep(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines, into a folder that may not be there yet."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
