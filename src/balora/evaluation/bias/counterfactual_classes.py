"""Counterfactual skew of a classifier, on any texts with words to exchange."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.counterfactual.text import swap_text
from balora.counterfactual.words import WordGroups
from balora.errors import BALoraError
from balora.evaluation.bias.bias_score import total_variation
from balora.evaluation.classification import class_probabilities


def counterfactual_texts(texts: Sequence[str], groups: WordGroups) -> list[list[str]]:
    """Return each text about every member of its groups, itself first: m texts, or none if it has no such word."""
    steps = range(1, len(groups[0]))
    return [
        [text, *(swap_text(text, groups, k)[0] for k in steps)] if swap_text(text, groups)[1] else [] for text in texts
    ]


def class_distances(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    groups: WordGroups,
    *,
    max_length: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Return the total variation between a classifier's answers to exchanged texts, `(N,)`, in [0, 1].

    Mean over pairs of the m exchanged texts, so that it is the same whomever the text was written about; for two it is
    what `classifier_bias_score` averages. NaN for texts without a word to exchange, left out of
    `counterfactual_scores`.

    Args:
        model: A classifier of two classes or more; left in the mode it was in.
        tokenizer: Its own.
        texts: N texts.
        groups: From `read_word_groups`.
        max_length: Tokens that a text is cut to; `None` cuts nothing.
        batch_size: Texts at a time.

    Raises:
        BALoraError: If the model has no classes to choose from.
    """
    if model.config.num_labels < 2:
        raise BALoraError("model: it has a single output; a distance between answers takes two classes or more")
    asked = counterfactual_texts(texts, groups)
    found = np.full(len(texts), np.nan)
    affected = [i for i, own in enumerate(asked) if own]
    flat = [text for i in affected for text in asked[i]]
    if not flat:
        return found
    p = class_probabilities(model, tokenizer, flat, max_length=max_length, batch_size=batch_size)  # (A·m, D)
    p = p.reshape(len(affected), len(groups[0]), -1)  # (A, m, D)
    pairs = combinations(range(len(groups[0])), 2)
    found[affected] = np.mean([total_variation(p[:, a], p[:, b]) for a, b in pairs], axis=0)
    return found
