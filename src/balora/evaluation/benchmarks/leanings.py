"""Whom a model leans to, on texts of balora's own or of the user's: exchanged words, and what it goes on to write.

Tables show a few figures; all of them with their intervals, and every text, are kept with the run. Formulas are in
`docs/measures.md`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from balora.counterfactual import Swaps, read_word_groups
from balora.counterfactual.words import WordGroups
from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.classifiers import Classifying
from balora.evaluation.benchmarks.writing import Benchmark, Writing, keep, keep_figures
from balora.evaluation.bias import (
    check_sampling,
    class_distances,
    continuation_lean,
    continuation_scores,
    counterfactual_divergences,
    counterfactual_scores,
    counterfactual_texts,
    lean_scores,
    load_scorer,
    named_members,
    read_bold,
    sample_continuations,
)
from balora.evaluation.bias.counterfactual_rows import read_rows
from balora.evaluation.bias.templates import CONTINUATIONS, OCCUPATIONS, PEOPLE, read_texts
from balora.evaluation.generation import check_room


def counterfactual(
    writing: Writing,
    *,
    words: str = "gender",
    file: str | None = None,
    prompt_file: str | None = None,
    max_samples: int | None = None,
) -> Benchmark:
    """Words exchanged: how much what is said next depends on who a text is about, and whom a prompt leans to.

    Args:
        writing: For tokenizer, context and batch size.
        words: `gender`, `religion`, `nationality`, or a file with a group a line.
        file: Sentences with such words, a `.txt` with one a line or a table's column `text`; `None` for ours, which
            have those of `gender`.
        prompt_file: Prompts that name nobody, likewise; `None` for ours about occupations.
        max_samples: The first so many of each.
    """
    groups = read_word_groups(expand_path(words))
    swaps = Swaps(groups, writing.tokenizer)
    texts = _texts(file, PEOPLE, groups)[:max_samples]
    prompts = read_texts(expand_path(prompt_file) if prompt_file else OCCUPATIONS)[:max_samples]
    read_rows(writing.tokenizer, texts, swaps, writing.context, setting=file or "texts")
    read_rows(writing.tokenizer, prompts, swaps, writing.context, setting=prompt_file or "prompts")
    named_members(swaps)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        how = {"batch_size": writing.batch_size}
        divergences = counterfactual_divergences(model, writing.tokenizer, texts, swaps, **how)
        lean = continuation_lean(model, writing.tokenizer, prompts, swaps, **how)
        scores = counterfactual_scores(divergences) | lean_scores(lean, groups[0])
        keep_figures(directory / "counterfactual.json", scores)
        leanings = [
            {"prompt": prompt, "lean": distance, "log_odds": dict(zip(groups[0], odds, strict=True))}
            for prompt, distance, odds in zip(prompts, lean.distances.tolist(), lean.log_odds.tolist(), strict=True)
        ]
        keep(directory / "counterfactual.jsonl", _rows(texts, "divergence", divergences) + leanings)
        return {
            "counterfactual_divergence": scores["divergence"],
            "counterfactual_lean": scores["lean"],
            "counterfactual_log_odds": scores["log_odds"][groups[0][0]]["log_odds"],
        }

    return measure


def counterfactual_classes(
    classifying: Classifying, *, words: str = "gender", file: str | None = None, max_samples: int | None = None
) -> Benchmark:
    """Words exchanged: how much a classifier's answer depends on who a text is about.

    Args:
        classifying: How the model is asked.
        words: See `counterfactual`.
        file: See `counterfactual`.
        max_samples: The first so many.
    """
    groups = read_word_groups(expand_path(words))
    texts = _texts(file, PEOPLE, groups)[:max_samples]
    how = {"max_length": classifying.max_length, "batch_size": classifying.batch_size}

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        distances = class_distances(model, classifying.tokenizer, texts, groups, **how)
        scores = counterfactual_scores(distances, name="bias_score")
        keep_figures(directory / "counterfactual.json", scores)
        keep(directory / "counterfactual.jsonl", _rows(texts, "distance", distances))
        return {"counterfactual_bias_score": scores["bias_score"]}

    return measure


def continuations(
    writing: Writing,
    *,
    scorer: str,
    file: str | None = None,
    max_samples: int | None = None,
    per_prompt: int = 5,
    max_new_tokens: int = 30,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Benchmark:
    """What is written about people of several groups, and how differently it is rated; as in BOLD.

    Args:
        writing: For tokenizer, context and batch size.
        scorer: `transformers:MODEL:LABEL` or `package.module:function`; see `load_scorer`.
        file: A file of BOLD or a folder of them; `None` for our own prompts about gender, nationality and religion.
        max_samples: The first so many prompts of each group.
        per_prompt: Texts for each prompt.
        max_new_tokens: Longest text.
        temperature: Of sampling.
        top_p: Of sampling.
        seed: Of sampling.
    """
    prompts = read_bold(expand_path(file) if file else CONTINUATIONS, max_samples=max_samples)
    texts = [prompt.text for prompt in prompts]
    check_sampling(per_prompt, max_new_tokens, temperature, top_p)
    check_room(writing.tokenizer, texts, max_new_tokens, writing.context)
    how = {
        "per_prompt": per_prompt,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "batch_size": writing.batch_size,
    }
    load_scorer(scorer)(texts[:2])  # what is wrong with it is said now; it takes no memory while models are trained

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        written = sample_continuations(model, writing.tokenizer, texts, **how)
        rate = load_scorer(scorer, batch_size=writing.batch_size)
        rated = rate([text for own in written for text in own]).reshape(len(prompts), per_prompt)  # (N, n)
        scores = continuation_scores(prompts, rated)
        keep_figures(directory / "continuations.json", scores)
        rows = [
            asdict(prompt) | {"continuation": text, "score": score}
            for prompt, own, found in zip(prompts, written, rated.tolist(), strict=True)
            for text, score in zip(own, found, strict=True)
        ]
        keep(directory / "continuations.jsonl", rows)
        gaps = {f"continuations_{domain}_gap": found["gap"] for domain, found in scores.items()}
        return {"continuations_gap": sum(gaps.values()) / len(gaps), **gaps}

    return measure


def _texts(file: str | None, ours: Path, groups: WordGroups) -> list[str]:
    texts = read_texts(expand_path(file) if file else ours)
    if not any(counterfactual_texts(texts, groups)):
        raise BALoraError(f"{file or ours}: no text has a word of the list; name a file of texts with some")
    return texts


def _rows(texts: list[str], name: str, values: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"text": text, name: None if np.isnan(value) else value}
        for text, value in zip(texts, values.tolist(), strict=True)
    ]
