"""Pairs of sentences, a stereotype and its counterpart, scored by causal and masked language models."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.evaluation.bias.bias_score import preference_scores
from balora.evaluation.bias.columns import check_known, read_columns
from balora.evaluation.bias.likelihood import labelled_log_likelihoods, log_likelihoods
from balora.evaluation.perplexity import IGNORED
from balora.utils.batches import TOKEN_BUDGET
from balora.utils.lengths import check_lengths, context_length


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
    token_budget: int = TOKEN_BUDGET,
) -> np.ndarray:
    """Return Δ = log P(stereotypical) − log P(antistereotypical) of each pair in nats, `(N,)`."""
    whole, each = both_log_odds(model, tokenizer, pairs, batch_size=batch_size, token_budget=token_budget)
    return each if per_token else whole


def both_log_odds(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[SentencePair],
    *,
    batch_size: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `pair_log_odds` of whole sentences and per token, `(N,)` each, from one pass."""
    texts = [text for pair in pairs for text in (pair.stereotypical, pair.antistereotypical)]
    whole = log_likelihoods(model, tokenizer, texts, batch_size=batch_size, token_budget=token_budget)
    each = whole / [len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]) for text in texts]
    return whole[::2] - whole[1::2], each[::2] - each[1::2]


def score_pairs(
    pairs: Sequence[SentencePair], log_odds: np.ndarray, *, share_of: np.ndarray | None = None, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return `preference_scores` over `all` pairs and over each group.

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


def read_crows_pairs(path: str | Path) -> list[SentencePair]:
    """Read the 1508 pairs of `crows_pairs_anonymized.csv`, grouped by type of bias and by direction.

    `sent_more` is the more stereotypical sentence in both directions. A pair is `stereo` where that sentence shows a
    stereotype of a disadvantaged group, and `antistereo` where the other one, `sent_less`, goes against such a
    stereotype. So the share of all pairs with a likelier `sent_more` is the paper's metric, and the shares over each
    direction are its stereotype and anti-stereotype scores; but the paper's likelihoods are a masked model's.

    Raises:
        BALoraError: If a column or value is missing, or a direction is neither of the two.
    """
    rows = read_columns(path, ["sent_more", "sent_less", "stereo_antistereo", "bias_type"])
    check_known(path, rows, "stereo_antistereo", ("stereo", "antistereo"))
    return [
        SentencePair(row["sent_more"], row["sent_less"], (row["bias_type"], row["stereo_antistereo"])) for row in rows
    ]


def masked_pair_log_odds(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[SentencePair],
    *,
    batch_size: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> np.ndarray:
    """Return Δ of each pair in nats, `(N,)`, by pseudo-log-likelihoods (Salazar et al., 2020; Nangia et al., 2020).

        score(S) = Σ_{u ∈ U} log p(u | S with u masked),   Δ = score(stereotypical) − score(antistereotypical)

    U are the tokens that both sentences have in the same order, by `difflib`'s longest matching spans; special tokens
    are never among them. What differs is never predicted, so that a rare name costs nothing. A pair that shares no
    token has Δ = 0. `score_pairs` takes these as it takes those of `pair_log_odds`.

    Args:
        model: A masked language model; left in the mode it was in.
        tokenizer: Its tokenizer.
        pairs: N pairs.
        batch_size: Sentences at a time, at most, each with one token masked.
        token_budget: Tokens at a time, at most, padding included.

    Raises:
        BALoraError: If the tokenizer has no mask token, or a sentence has more tokens than the model takes.
    """
    mask = tokenizer.mask_token_id
    if mask is None:
        raise BALoraError("tokenizer: has no mask_token; score a causal language model's pairs with pair_log_odds")
    texts = [text for pair in pairs for text in (pair.stereotypical, pair.antistereotypical)]
    read = [tokenizer(text, return_special_tokens_mask=True, verbose=False) for text in texts]
    rows = [encoding["input_ids"] for encoding in read]
    check_lengths(map(len, rows), source="texts", max_length=None, context=context_length(model.config, tokenizer))
    windows, owners = [], []
    for owner, shared in enumerate(_shared_places(rows)):
        for place in shared:
            if not read[owner]["special_tokens_mask"][place]:
                windows.append(_masked(rows[owner], place, mask))
                owners.append(owner)
    found = labelled_log_likelihoods(model, windows, shift=0, batch_size=batch_size, token_budget=token_budget)
    sums = np.bincount(np.array(owners, dtype=int), weights=found, minlength=len(rows))
    return sums[::2] - sums[1::2]


def _shared_places(rows: Sequence[list[int]]) -> list[list[int]]:
    """Return the positions of the tokens that each row of ids shares with the other of its pair."""
    shared = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        spans = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
        shared += [[i for a, _, size in spans for i in range(a, a + size)]]
        shared += [[i for _, b, size in spans for i in range(b, b + size)]]
    return shared


def _masked(ids: list[int], place: int, mask: int) -> tuple[list[int], list[int]]:
    """Return ids with one of them masked, and labels of that one alone."""
    before, after = ids[:place], ids[place + 1 :]
    return [*before, mask, *after], [IGNORED] * len(before) + [ids[place]] + [IGNORED] * len(after)
