"""The interface of a benchmark: read its problems, ask a model, compute metrics from the answers.

`compare` and `evaluate` take the metrics' values with their intervals, the audit takes the paired interval of their
change from the same units.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data import expand_path
from balora.data.vocabulary import check_vocabulary
from balora.evaluation.generation import check_room, generate_completions
from balora.evaluation.metric import Definition, Estimate, Units, estimate
from balora.utils.batches import TOKEN_BUDGET

#: The kinds of model that can be asked.
CAUSAL, CLASSIFIER, MASKED = "causal language model", "classifier", "masked language model"
#: Arguments of `Benchmark.read` that are no settings: they describe the model.
GIVEN = ("label_names", "training_texts")

#: Where the Hub has a benchmark, and which part of it is the test set.
HUB: dict[str, tuple[str, dict[str, str]]] = {
    "gsm8k": ("openai/gsm8k", {"name": "main", "split": "test"}),
    "math": ("HuggingFaceH4/MATH-500", {"split": "test"}),
    "humaneval": ("openai/openai_humaneval", {"split": "test"}),
    "mbpp": ("google-research-datasets/mbpp", {"name": "full", "split": "test"}),
    "wikitext2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}),
}


@dataclass(frozen=True)
class PromptSettings:
    """The settings of the model that is asked.

    Attributes:
        tokenizer: The model's tokenizer.
        batch_size: Texts at a time, at most.
        kind: `CAUSAL`, `CLASSIFIER` or `MASKED`.
        context: Tokens that the model takes at once; `None` without a limit.
        embeddings: Number of the model's token embeddings; `None` if unknown.
        format_prompt: From a question to the text that a language model continues.
        instructed: Whether the prompt tells a language model what to do, rather than being a text to continue.
        max_length: Tokens that a classifier's text is cut to; `None` cuts nothing.
        label_names: A classifier's classes, by id.
        training_texts: Texts that a classifier was trained on, or that come from the same file.
        directory: Folder for files that a benchmark writes while it asks.
        token_budget: Tokens that are read at a time, at most, padding included; a longer text is read alone.
    """

    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    kind: str = CAUSAL
    context: int | None = None
    embeddings: int | None = None
    format_prompt: Callable[[str], str] = str
    instructed: bool = False
    max_length: int | None = None
    label_names: Sequence[str] = ()
    training_texts: Set[str] = frozenset()
    directory: Path = Path()
    token_budget: int = TOKEN_BUDGET

    @property
    def batching(self) -> dict[str, int]:
        """The limits of a batch, as the functions that read texts take them."""
        return {"batch_size": self.batch_size, "token_budget": self.token_budget}


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _same_name(name: str) -> str:
    return name


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: Name in recipes and audits.
        title: Name on an audit's page.
        read: From settings, its keyword arguments, to problems. It needs no model and runs before one is loaded. Among
            its arguments may be those of `GIVEN`.
        ask: From a model, the problems and `PromptSettings` to the model's answers.
        metrics: From problems and answers to the units of each metric, by name; of no units where the metric cannot be
            computed, which is NaN in `compare` and left out in an audit.
        definitions: The metrics' entries in the glossary.
        models: Kinds of model that it asks, of `CAUSAL`, `CLASSIFIER` and `MASKED`.
        measures_bias: Whether noise studies measure it at every level of noise.
        unit: What the units are, in the plural.
        check: Raise `BALoraError` if the problems do not fit the model, before training.
        save: Write what was measured into a run's folder.
        audit_name: From a metric's name to its name in an audit; `None` leaves it out there.
    """

    name: str
    title: str
    read: Callable[..., Any]
    ask: Callable[[PreTrainedModel, Any, PromptSettings], Any]
    metrics: Callable[[Any, Any], dict[str, Units]]
    definitions: Mapping[str, Definition] = field(default_factory=dict)
    models: tuple[str, ...] = (CAUSAL,)
    measures_bias: bool = False
    unit: str = "items"
    check: Callable[[Any, PromptSettings], None] = _nothing
    save: Callable[[Any, Any, Path], None] = _nothing
    audit_name: Callable[[str], str | None] = _same_name


#: From a model, and the folder for what it wrote, to the benchmark's metrics.
Measure = Callable[[PreTrainedModel, Path], dict[str, Estimate]]


def prepare(benchmark: Benchmark, prompts: PromptSettings, **settings: Any) -> Measure:
    """Read a benchmark's problems, check that they fit the model, and return the function that measures it.

    Args:
        benchmark: The benchmark.
        prompts: How the model is asked.
        settings: Arguments of `benchmark.read`.

    Raises:
        BALoraError: If a file or a setting is wrong, or a problem does not fit the model.
    """
    given = {name: getattr(prompts, name) for name in GIVEN}
    problems = read_problems(benchmark, settings, **given)
    if prompts.embeddings is not None:
        rows = {f"its {name}": items for name, items in _texts_of(problems).items()}
        check_vocabulary(prompts.tokenizer, prompts.embeddings, rows, source="the model")
    benchmark.check(problems, prompts)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, Estimate]:
        answers = benchmark.ask(model, problems, replace(prompts, directory=directory))
        benchmark.save(problems, answers, directory)
        return {name: estimate(units) for name, units in benchmark.metrics(problems, answers).items()}

    return measure


def _texts_of(problems: Any) -> dict[str, Sequence[Any]]:
    """Return the items of a benchmark's problems by name: the problems, or each list among their fields."""
    if is_dataclass(problems):
        return {name: value for name, value in vars(problems).items() if isinstance(value, list | tuple)}
    return {"items": problems} if isinstance(problems, list | tuple) else {}


def read_problems(benchmark: Benchmark, settings: Mapping[str, Any], **given: Any) -> Any:
    """Call `benchmark.read` with settings and those of the given arguments that it takes."""
    taken = inspect.signature(benchmark.read).parameters
    return benchmark.read(**settings, **{name: value for name, value in given.items() if name in taken})


def source_of(name: str, file: str | None) -> tuple[str, dict[str, str]]:
    """Return `load_table`'s arguments: a file, or the Hub's dataset where none is named."""
    return (expand_path(file), {}) if file else HUB[name]


def complete(model: PreTrainedModel, asked: Sequence[str], prompts: PromptSettings, max_new_tokens: int) -> list[str]:
    """Return a model's greedy completion of each prompt."""
    how = {"max_new_tokens": max_new_tokens, "batch_size": prompts.batch_size}
    return generate_completions(model, prompts.tokenizer, asked, **how)


class Completed(Protocol):
    """Problems that a model answers by completing their prompts."""

    @property
    def max_new_tokens(self) -> int:
        """Number of tokens of the longest completion."""

    def asked(self, prompts: PromptSettings) -> list[str]:
        """Return the prompts of the problems."""


def check_completions(problems: Completed, prompts: PromptSettings) -> None:
    """Raise `BALoraError` if a prompt and its completion are beyond the model's context."""
    check_room(prompts.tokenizer, problems.asked(prompts), problems.max_new_tokens, prompts.context)


def save_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write scores as JSON; missing folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def save_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines; missing folders are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
