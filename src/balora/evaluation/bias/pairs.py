"""Pairs of sentences, a stereotype and its counterpart, and how a language model is scored on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.evaluation.bias.likelihood import log_likelihoods
from balora.evaluation.bias.score import preference_scores


@dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in who they are about.

    Attributes:
        stereotypical: The one that agrees with a stereotype.
        antistereotypical: The one that does not.
        groups: What the pair is scored under beside all of them, such as `("gender", "stereo")`.
    """

    stereotypical: str
    antistereotypical: str
    groups: tuple[str, ...] = ()


def pair_log_odds(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[SentencePair],
    *,
    per_token: bool = False,
    batch_size: int = 32,
) -> np.ndarray:
    """Δ = log P(stereotypical) − log P(antistereotypical) of each pair in nats, `(N,)`; see `log_likelihoods`."""
    whole, each = both_log_odds(model, tokenizer, pairs, batch_size=batch_size)
    return each if per_token else whole


def both_log_odds(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[SentencePair], *, batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """`pair_log_odds` of whole sentences and per token, each `(N,)`, for the time of one."""
    texts = [text for pair in pairs for text in (pair.stereotypical, pair.antistereotypical)]
    whole = log_likelihoods(model, tokenizer, texts, batch_size=batch_size)
    each = whole / [len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    return whole[::2] - whole[1::2], each[::2] - each[1::2]


def score_pairs(
    pairs: Sequence[SentencePair], log_odds: np.ndarray, *, share_of: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """`preference_scores` over `all` pairs and over each group.

    Args:
        pairs: N pairs, at least 1.
        log_odds: `(N,)`, from `pair_log_odds`.
        share_of: `(N,)`, see `preference_scores`.
        seed: Of the bootstrap.
    """
    log_odds = np.asarray(log_odds)
    sides = log_odds if share_of is None else np.asarray(share_of)
    scores = {"all": preference_scores(log_odds, share_of=sides, seed=seed)}
    for group in sorted({group for pair in pairs for group in pair.groups}):
        members = np.array([group in pair.groups for pair in pairs])  # (N,)
        scores[group] = preference_scores(log_odds[members], share_of=sides[members], seed=seed)
    return scores
