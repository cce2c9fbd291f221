"""Benchmarks of items in an audit: StereoSet, BBQ, and texts written behind prompts as in BOLD."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from balora.audit.figures import Figure, Units, mean
from balora.audit.models import Audited, Model
from balora.audit.pairs import measured_on_both, on_both
from balora.evaluation.bias import (
    BBQItem,
    Prompt,
    StereoItem,
    bbq_likelihoods,
    sample_continuations,
    stereoset_likelihoods,
)
from balora.evaluation.bias.bbq_scores import accuracy, bias_ambiguous, bias_disambiguated, template_sums
from balora.evaluation.bias.scorers import Scorer
from balora.evaluation.bias.stereoset import icat, term_scores


def measure_stereoset(
    audited: Audited, items: Sequence[StereoItem], *, batch_size: int, seed: int = 0
) -> list[Figure]:
    """`stereoset_lms`, `stereoset_ss` and `stereoset_icat` as `balora.evaluation.bias.stereoset_scores` has them."""
    answers = on_both(
        audited, lambda model: stereoset_likelihoods(model, audited.tokenizer, items, batch_size=batch_size)
    )

    def units(likelihoods: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> Units:
        """A row for each target term: its two scores, and 1."""
        scores = term_scores(items, likelihoods)
        return Units(np.concatenate([scores, np.ones((len(scores), 1))], 1), of)

    scores = {
        "stereoset_lms": lambda sums: sums[:, 0] / sums[:, 2],
        "stereoset_ss": lambda sums: sums[:, 1] / sums[:, 2],
        "stereoset_icat": lambda sums: icat(sums[:, 0] / sums[:, 2], sums[:, 1] / sums[:, 2]),
    }
    return [
        measured_on_both(
            name, answers, lambda found, of=of: units(found, of), on="StereoSet", unit="target terms", seed=seed
        )
        for name, of in scores.items()
    ]


def measure_bbq(audited: Audited, items: Sequence[BBQItem], *, batch_size: int, seed: int = 0) -> list[Figure]:
    """Accuracies and bias scores of BBQ as `balora.evaluation.bias.bbq_scores` has them, over its templates."""
    answers = on_both(audited, lambda model: bbq_likelihoods(model, audited.tokenizer, items, batch_size=batch_size))
    scores = {
        "bbq_accuracy_ambiguous": (accuracy, True),
        "bbq_accuracy_disambiguated": (accuracy, False),
        "bbq_bias_ambiguous": (bias_ambiguous, True),
        "bbq_bias_disambiguated": (bias_disambiguated, False),
    }
    return [
        measured_on_both(
            name,
            answers,
            lambda found, of=of, open_=open_: Units(template_sums(items, found, ambiguous=open_), of),
            on="BBQ",
            unit="templates",
            seed=seed,
        )
        for name, (of, open_) in scores.items()
        if any(item.ambiguous == open_ for item in items)
    ]


def measure_continuations(
    audited: Audited, prompts: Sequence[Prompt], rate: Scorer, *, seed: int = 0, **sampling: Any
) -> list[Figure]:
    """`continuations_score`, and `continuations_gap` of each domain, over prompts.

    Args:
        audited: A causal language model and its base.
        prompts: At least one.
        rate: From texts to scores.
        seed: Of sampling and bootstrap.
        sampling: Further arguments of `sample_continuations`.
    """
    texts = [prompt.text for prompt in prompts]

    def ask(model: Model) -> np.ndarray:
        written = sample_continuations(model, audited.tokenizer, texts, seed=seed, **sampling)
        return rate([text for own in written for text in own]).reshape(len(prompts), -1).mean(1)  # (N,)

    answers = on_both(audited, ask)
    domains = np.array([prompt.domain for prompt in prompts])
    groups = np.array([prompt.group for prompt in prompts])

    def gap(scores: np.ndarray, domain: str) -> Units:
        own = domains == domain
        members = groups[own][:, None] == np.unique(groups[own])  # (N, G)
        return Units(np.concatenate([members * scores[own, None], members], 1), _gap)

    figures = [measured_on_both("continuations_score", answers, mean, on="continuations", unit="prompts", seed=seed)]
    gaps = [
        measured_on_both(
            "continuations_gap", answers, lambda found, d=domain: gap(found, d), on=domain, unit="prompts", seed=seed
        )
        for domain in dict.fromkeys(domains.tolist())
    ]
    return figures + gaps


def _gap(sums: np.ndarray) -> np.ndarray:
    """Largest minus smallest mean over groups, from sums and counts side by side, of groups with prompts."""
    size = sums.shape[1] // 2
    with np.errstate(invalid="ignore"):
        means = sums[:, :size] / sums[:, size:]
    return np.fmax.reduce(means, 1) - np.fmin.reduce(means, 1)
