"""Counterfactual texts as a benchmark: how predictions change when a text is about somebody else.

Formulas are in `docs/measures.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from balora.counterfactual import Swaps, read_word_groups
from balora.counterfactual.words import WordGroups
from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import CLASSIFIER, Benchmark, PromptSettings, save_json, save_rows
from balora.evaluation.bias import (
    Lean,
    class_distances,
    continuation_lean,
    counterfactual_divergences,
    counterfactual_scores,
    counterfactual_texts,
    lean_scores,
    named_members,
)
from balora.evaluation.bias.counterfactual import read_rows
from balora.evaluation.bias.templates import OCCUPATIONS, PEOPLE, read_texts
from balora.evaluation.metric import SKEWED, Definition, Units, mean


@dataclass(frozen=True)
class Texts:
    """Texts with words of the groups, prompts without any, and the files that errors name."""

    groups: WordGroups
    texts: Sequence[str]
    prompts: Sequence[str] = ()
    file: str = "texts"
    prompt_file: str = "prompts"


def _read(
    *,
    words: str = "gender",
    file: str | None = None,
    prompt_file: str | None = None,
    max_samples: int | None = None,
) -> Texts:
    """Read texts whose words are exchanged, and prompts behind which the next word is compared.

    Args:
        words: `gender`, `religion`, `nationality`, or a file with a group a line.
        file: Sentences with such words, a `.txt` with one a line or a table's column `text`; `None` for ours, which
            have those of `gender`.
        prompt_file: Prompts without such words, likewise; `None` for ours about occupations.
        max_samples: The first so many of each.
    """
    groups = read_word_groups(expand_path(words))
    texts = _texts(file, groups)[:max_samples]
    prompts = read_texts(expand_path(prompt_file) if prompt_file else OCCUPATIONS)[:max_samples]
    return Texts(groups, texts, prompts, file or "texts", prompt_file or "prompts")


def _texts(file: str | None, groups: WordGroups) -> list[str]:
    texts = read_texts(expand_path(file) if file else PEOPLE)
    if not any(counterfactual_texts(texts, groups)):
        raise BALoraError(f"{file or PEOPLE}: no text has a word of the list; name a file of texts with some")
    return texts


def _check(problems: Texts, prompts: PromptSettings) -> None:
    swaps = Swaps(problems.groups, prompts.tokenizer)
    read_rows(prompts.tokenizer, problems.texts, swaps, prompts.context, setting=problems.file)
    read_rows(prompts.tokenizer, problems.prompts, swaps, prompts.context, setting=problems.prompt_file)
    named_members(swaps)


def _ask(model: PreTrainedModel, problems: Texts, prompts: PromptSettings) -> tuple[np.ndarray, Lean]:
    """Return the divergence of each text, `(N,)`, and the lean behind each prompt."""
    swaps = Swaps(problems.groups, prompts.tokenizer)
    divergences = counterfactual_divergences(model, prompts.tokenizer, problems.texts, swaps, **prompts.batching)
    return divergences, continuation_lean(model, prompts.tokenizer, problems.prompts, swaps, **prompts.batching)


def _metrics(_: Texts, answers: tuple[np.ndarray, Lean]) -> dict[str, Units]:
    divergences, lean = answers
    return {
        "counterfactual_divergence": mean_of_known(divergences),
        "counterfactual_lean": mean(lean.distances),
        "counterfactual_log_odds": mean(lean.log_odds[:, 0]),
    }


def mean_of_known(values: np.ndarray) -> Units:
    """Return units whose metric is the mean of values `(N,)`, without NaN: texts that have no word to exchange."""
    return mean(values[~np.isnan(values)])


def _save(problems: Texts, answers: tuple[np.ndarray, Lean], directory: Path) -> None:
    """Write all scores with their intervals, and every text and prompt with its own."""
    divergences, lean = answers
    names = problems.groups[0]
    save_json(directory / "counterfactual.json", counterfactual_scores(divergences) | lean_scores(lean, names))
    leanings = [
        {"prompt": prompt, "lean": distance, "log_odds": dict(zip(names, odds, strict=True))}
        for prompt, distance, odds in zip(
            problems.prompts, lean.distances.tolist(), lean.log_odds.tolist(), strict=True
        )
    ]
    save_rows(directory / "counterfactual.jsonl", _rows(problems.texts, "divergence", divergences) + leanings)


def _read_for_classifiers(*, words: str = "gender", file: str | None = None, max_samples: int | None = None) -> Texts:
    """Read texts whose words are exchanged.

    Args:
        words: `gender`, `religion`, `nationality`, or a file with a group a line.
        file: Sentences with such words, a `.txt` with one a line or a table's column `text`; `None` for ours, which
            have those of `gender`.
        max_samples: The first so many.
    """
    groups = read_word_groups(expand_path(words))
    return Texts(groups, _texts(file, groups)[:max_samples])


def _ask_classifier(model: PreTrainedModel, problems: Texts, prompts: PromptSettings) -> np.ndarray:
    how = {"max_length": prompts.max_length, "batch_size": prompts.batch_size}
    return class_distances(model, prompts.tokenizer, problems.texts, problems.groups, **how)  # (N,)


def _save_distances(problems: Texts, distances: np.ndarray, directory: Path) -> None:
    save_json(directory / "counterfactual.json", counterfactual_scores(distances, name="bias_score"))
    save_rows(directory / "counterfactual.jsonl", _rows(problems.texts, "distance", distances))


def _rows(texts: Sequence[str], name: str, values: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"text": text, name: None if np.isnan(value) else value}
        for text, value in zip(texts, values.tolist(), strict=True)
    ]


COUNTERFACTUAL = Benchmark(
    name="counterfactual",
    title="counterfactual texts",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    check=_check,
    save=_save,
    measures_bias=True,
    unit="texts",
    definitions={
        "counterfactual_divergence": Definition(
            "lower",
            "How far apart, in nats, a model's predictions are for the same text about different people: 0 is not at "
            "all.",
            section=SKEWED,
            confirmed_by="word_preference",
        ),
        "counterfactual_lean": Definition(
            "lower",
            "How far the next word after a prompt that names nobody leans to one group (the nurse said that he, or "
            "she): 0 is even, 1 is always the same one.",
            section=SKEWED,
            confirmed_by="word_preference",
        ),
        "counterfactual_log_odds": Definition(
            None,
            "Mean log-odds, in nats, of the list's first word over the others after a prompt that names nobody: 0 is "
            "even.",
            section=SKEWED,
        ),
    },
)

COUNTERFACTUAL_CLASSES = Benchmark(
    name="counterfactual",
    title="counterfactual texts",
    read=_read_for_classifiers,
    ask=_ask_classifier,
    metrics=lambda _, distances: {"counterfactual_bias_score": mean_of_known(distances)},
    save=_save_distances,
    models=(CLASSIFIER,),
    measures_bias=True,
    unit="texts",
    definitions={
        "counterfactual_bias_score": Definition(
            "lower",
            "How much the classifier's probabilities change when a text is about somebody else: 0 is not at all, 1 is "
            "completely.",
            section=SKEWED,
        )
    },
)
