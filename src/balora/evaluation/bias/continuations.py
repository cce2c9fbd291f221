"""BOLD (Dhamala et al., 2021): sampled continuations of prompts about several groups, and how they are rated.

A scorer of your choice rates what was written, and the groups of a domain are compared. The prompt is not rated, so a
scorer's view of a group's name does not count.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.evaluation.bias.bias_score import mean_with_interval
from balora.evaluation.generation import check_room
from balora.utils.bootstrap import RESAMPLES
from balora.utils.lengths import context_length
from balora.utils.sampling import end_token_ids, sample_tokens, seeded

#: Ending of a domain's file, after the domain's name.
SUFFIX = "_prompt.json"


@dataclass(frozen=True)
class Prompt:
    """A prompt about a group.

    Attributes:
        domain: The kind of groups compared, such as `gender`.
        group: The group, such as `American_actresses`.
        name: Name of the person or frame, which may have several prompts.
        text: The text to continue, without spaces around it: a tokenizer would take one at the end for a word.
    """

    domain: str
    group: str
    name: str
    text: str


def read_bold(path: str | Path, *, max_samples: int | None = None) -> list[Prompt]:
    """Read the prompts of a domain, or of all domains in a folder: files as published, `{group: {name: [prompts]}}`.

    Args:
        path: A file, whose name without `_prompt.json` is its domain, or a folder of `*_prompt.json`.
        max_samples: The first so many of each group.

    Raises:
        BALoraError: If there is no such file, it has another form, or fewer than two groups to compare.
    """
    path = Path(path)
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise BALoraError(f"{path}: holds no file that ends in {SUFFIX}, such as gender{SUFFIX}")
    prompts = []
    for file in files:
        for group, names in _groups(file).items():
            domain = file.name.removesuffix(".json").removesuffix("_prompt")
            own = [Prompt(domain, group, name, text.strip()) for name, texts in names.items() for text in texts]
            prompts += own[:max_samples]
    return prompts


def _groups(file: Path) -> dict[str, dict[str, list[str]]]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BALoraError(f"{file}: cannot be read as a JSON file: {error}") from error
    if not isinstance(content, dict) or len(content) < 2:
        raise BALoraError(f"{file}: expected an object of two groups or more, to compare with one another")
    for group, names in content.items():
        if not isinstance(names, dict) or not all(isinstance(texts, list) for texts in names.values()):
            raise BALoraError(f"{file}, {group!r}: expected an object of lists, {{name: [prompts]}}")
        texts = [text for own in names.values() for text in own]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise BALoraError(f"{file}, {group!r}: expected prompts, texts that are not blank")
    return content


def sample_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    per_prompt: int = 5,
    max_new_tokens: int = 30,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
) -> list[list[str]]:
    """Sample the texts that a model writes behind each of N prompts, `per_prompt` for each, without the prompt.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its own.
        prompts: N prompts.
        per_prompt: Texts for each.
        max_new_tokens: Tokens of each; fewer where the model ends its text.
        temperature: That logits are divided by.
        top_p: Sample from the likeliest tokens whose probabilities reach this; 1 is from all.
        seed: Equal seeds give equal texts, on one machine. The global generators play no part.
        batch_size: Texts at a time. It takes part in what is drawn.

    Raises:
        BALoraError: If a number is out of range, or a prompt has no tokens or leaves no room in the model's context.
    """
    check_sampling(per_prompt, max_new_tokens, temperature, top_p, batch_size)
    rows = check_room(tokenizer, prompts, max_new_tokens, context_length(model.config, tokenizer))
    ends = end_token_ids(model, tokenizer)
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    found: list[list[str]] = [[] for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with seeded(model, seed):
        for _, alike in groupby(order, key=lambda i: len(rows[i])):
            asked = [i for i in alike for _ in range(per_prompt)]
            for first in range(0, len(asked), batch_size):
                part = asked[first : first + batch_size]
                for i, row in zip(part, sample_tokens(model, tokenizer, [rows[i] for i in part], **how), strict=True):
                    text = row[:-1] if row[-1] in ends else row
                    found[i].append(tokenizer.decode(text, skip_special_tokens=True))
    return found


def check_sampling(
    per_prompt: int, max_new_tokens: int, temperature: float, top_p: float, batch_size: int = 1
) -> None:
    """Validate the arguments of `sample_continuations`.

    Raises:
        BALoraError: If a number is out of range.
    """
    for name, value in (("per_prompt", per_prompt), ("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise BALoraError(f"{name}: {value}; use at least 1")
    if not temperature > 0:
        raise BALoraError(f"temperature: {temperature}; use more than 0")
    if not 0 < top_p <= 1:
        raise BALoraError(f"top_p: {top_p}; use more than 0 and at most 1")


def continuation_scores(prompts: Sequence[Prompt], scores: np.ndarray, *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Return the scores of what was written, by domain and group.

    Args:
        prompts: N prompts.
        scores: `(N, n)`, of the n texts behind each.
        seed: Of bootstrap and permutations.

    Returns:
        By domain: `groups`, by name the mean `score`, its 95 % interval `score_low` and `score_high`, which resamples
        prompts whole, and how many `prompts`; `gap`, the largest minus the smallest of the means; `highest` and
        `lowest`, whose they are; `gap_p`, the share of permutations of prompts over groups that give a gap as large: a
        gap is above 0 by chance alone, and the more so the more groups there are.
    """
    means = np.asarray(scores, dtype=np.float64).mean(1)  # (N,)
    found = {}
    for domain in dict.fromkeys(prompt.domain for prompt in prompts):
        own = [i for i, prompt in enumerate(prompts) if prompt.domain == domain]
        names, place = np.unique([prompts[i].group for i in own], return_inverse=True)
        values = means[own]
        groups = {
            str(name): {
                **mean_with_interval("score", values[place == number], seed=seed),
                "prompts": int((place == number).sum()),
            }
            for number, name in enumerate(names)
        }
        ranked = sorted(groups, key=lambda name: groups[name]["score"])
        gap = groups[ranked[-1]]["score"] - groups[ranked[0]]["score"]
        found[domain] = {
            "groups": groups,
            "gap": gap,
            "highest": ranked[-1],
            "lowest": ranked[0],
            "gap_p": _share_as_large(values, place, gap, seed),
        }
    return found


def _share_as_large(values: np.ndarray, place: np.ndarray, gap: float, seed: int) -> float:
    """Return the share of permutations, the given one among them, with as large a gap (Phipson & Smyth, 2010)."""
    generator = np.random.default_rng(seed)
    counts = np.bincount(place)
    as_large = 1
    for _ in range(RESAMPLES):
        means = np.bincount(place, weights=generator.permutation(values)) / counts
        as_large += np.ptp(means) >= gap * (1 - 1e-12)  # up to rounding
    return float(as_large / (1 + RESAMPLES))
