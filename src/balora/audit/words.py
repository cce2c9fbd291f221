"""Words of a list in an audit, such as he and she: what changes if they are exchanged, and which a model expects."""

from collections.abc import Sequence

import numpy as np

from balora.audit.metrics import Metric, measured_on_both
from balora.audit.models import Audited, Model
from balora.counterfactual import Swaps
from balora.counterfactual.words import WordGroups
from balora.evaluation.bias import class_distances, continuation_lean, counterfactual_divergences
from balora.evaluation.metric import mean


def measure_prompts(
    audited: Audited, groups: WordGroups, prompts: Sequence[str], *, on: str, batch_size: int, seed: int = 0
) -> list[Metric]:
    """Return a causal language model's `word_preference` and `word_lean` after prompts without such words.

    The list is empty if its tokenizer has no group of words as single tokens.

    Args:
        audited: The model and its base.
        groups: Words to exchange.
        prompts: At least one.
        on: Name of the prompts.
        batch_size: Prompts at a time.
        seed: Seed of the bootstrap.
    """
    swaps = Swaps(groups, audited.tokenizer)
    if (swaps.members() < 0).all():
        return []

    def ask(model: Model) -> np.ndarray:
        lean = continuation_lean(model, audited.tokenizer, prompts, swaps, batch_size=batch_size)
        return np.stack([preference_among(lean.log_masses), lean.distances], 1)

    answers = audited.answers(ask)
    return [
        measured_on_both(name, answers, lambda found, i=i: mean(found[:, i]), on=on, unit="prompts", seed=seed)
        for i, name in enumerate(("word_preference", "word_lean"))
    ]


def measure_exchanged_texts(
    audited: Audited, groups: WordGroups, texts: Sequence[str], *, on: str, batch_size: int, seed: int = 0
) -> list[Metric]:
    """Return `counterfactual_kl` of a causal language model on texts with some of the words that fit its context."""
    swaps = Swaps(groups, audited.tokenizer)
    texts = [text for text in texts if _fits(audited, swaps, text)]

    def ask(model: Model) -> np.ndarray:
        return counterfactual_divergences(model, audited.tokenizer, texts, swaps, batch_size=batch_size)

    return _with_words("counterfactual_kl", audited, audited.answers(ask), on=on, seed=seed)


def measure_exchanged_rows(
    audited: Audited,
    groups: WordGroups,
    texts: Sequence[str],
    *,
    on: str,
    max_length: int | None,
    batch_size: int,
    seed: int = 0,
) -> list[Metric]:
    """Return `bias_score` of a classifier on those texts that have some of the words."""
    how = {"max_length": audited.context(max_length), "batch_size": batch_size}

    def ask(model: Model) -> np.ndarray:
        return class_distances(model, audited.tokenizer, texts, groups, **how)

    return _with_words("bias_score", audited, audited.answers(ask), on=on, seed=seed)


def preference_among(log_masses: np.ndarray) -> np.ndarray:
    """Return how far the shares of a group's m members are from even, `(N,)`: 0 is even, 1 is one member alone.

    m/(m − 1) times the total variation of the shares from 1/m; of two members |p − q|/(p + q), as in the Bias Score of
    a pair.

    Args:
        log_masses: `(N, m)`, log-probabilities of the members.
    """
    shares = np.exp(log_masses - np.logaddexp.reduce(log_masses, 1, keepdims=True))  # (N, m)
    size = shares.shape[1]
    return np.abs(shares - 1 / size).sum(1) / 2 * size / (size - 1)


def _fits(audited: Audited, swaps: Swaps, text: str) -> bool:
    """Return whether a text, and every exchanged one, has tokens and at most as many as the models take."""
    ids = audited.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    lengths = [len(ids), *(len(swaps.swapped(ids, k).ids) for k in range(1, swaps.size))]
    return min(lengths) > 0 and max(lengths) < (audited.context() or np.inf)  # one more begins it


def _with_words(
    name: str, audited: Audited, answers: tuple[np.ndarray | None, np.ndarray], *, on: str, seed: int
) -> list[Metric]:
    """Return the mean over texts that are not NaN; an empty list if all are."""
    known = ~np.isnan(answers[1])
    if not known.any():
        return []
    on = f"{on}, words exchanged"
    return [measured_on_both(name, answers, lambda found: mean(found[known]), on=on, unit="texts", seed=seed)]
