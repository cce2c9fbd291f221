"""CrowS-Pairs as it was published, under a masked language model: the tokens that both sentences share, one by one."""

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.evaluation.bias.likelihood import labelled_log_likelihoods
from balora.evaluation.bias.pairs import SentencePair
from balora.evaluation.perplexity import IGNORED
from balora.utils.lengths import check_lengths, context_length


def masked_pair_log_odds(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[SentencePair], *, batch_size: int = 32
) -> np.ndarray:
    """Δ of each pair in nats, `(N,)`, by pseudo-log-likelihoods (Salazar et al., 2020; Nangia et al., 2020).

        score(S) = Σ_{u ∈ U} log p(u | S with u masked),   Δ = score(stereotypical) − score(antistereotypical)

    U are the tokens that both sentences have in the same order, by `difflib`'s longest matching spans; special tokens
    are never among them. What differs is never predicted, so that a rare name costs nothing. A pair that shares no
    token has Δ = 0. `score_pairs` takes these as it takes those of `pair_log_odds`.

    Args:
        model: A masked language model; left in the mode it was in.
        tokenizer: Its tokenizer.
        pairs: N pairs.
        batch_size: Sentences at a time, each with one token masked.

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
    found = labelled_log_likelihoods(model, windows, shift=0, batch_size=batch_size)
    sums = np.bincount(np.array(owners, dtype=int), weights=found, minlength=len(rows))
    return sums[::2] - sums[1::2]


def _shared_places(rows: Sequence[list[int]]) -> list[list[int]]:
    """Of each row of ids the places of the tokens that it shares with the other of its pair."""
    shared = []
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        spans = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
        shared += [[i for a, _, size in spans for i in range(a, a + size)]]
        shared += [[i for _, b, size in spans for i in range(b, b + size)]]
    return shared


def _masked(ids: list[int], place: int, mask: int) -> tuple[list[int], list[int]]:
    """Ids with one of them masked, and labels with it alone."""
    before, after = ids[:place], ids[place + 1 :]
    return [*before, mask, *after], [IGNORED] * len(before) + [ids[place]] + [IGNORED] * len(after)
