"""Counterfactual skew: how a causal language model's predictions depend on who a text is about.

With π_k the exchange of every word of a group for the one k steps on, of m, and Q_k(v) = P(π_k(v) | π_k(x)) the
prediction for the exchanged text, exchanged back, all Q_k are the same for a model without skew. The divergence at a
position is the mean of the Kullback–Leibler divergence over ordered pairs of them,

    D = 1/(m·(m − 1))·Σ_{j≠k} KL(Q_j ‖ Q_k),

in both directions, since no member of a group is the reference: it is the same whomever the text was written about.

Prompts that name nobody, such as "The nurse said that", have no such word, and Q_k(v) = P(π_k(v) | x). The lean
is the total variation between P and Q_k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from balora.counterfactual import Swaps
from balora.counterfactual.teacher import align_outputs, swap_batches
from balora.errors import BALoraError
from balora.evaluation.bias.bias_score import mean_with_interval
from balora.fused import Head, TokenScorer, chunk_rows, logit_chunks
from balora.utils.batches import TOKEN_BUDGET, token_batches
from balora.utils.lengths import check_lengths, context_length


def read_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    swaps: Swaps,
    context: int | None,
    *,
    setting: str = "texts",
) -> list[list[int]]:
    """Return the tokens of each text, after the token that begins a text, or ends one, if the tokenizer has it.

    Raises:
        BALoraError: If a text has no tokens, or one of it and the exchanged ones more than the context.
    """
    prefix = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    rows = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    if not all(rows):
        raise BALoraError(f"{setting}, row {[*map(bool, rows)].index(False) + 1}: has no tokens; leave it out")
    rows = [prefix + ids for ids in rows]
    longest = [max([len(ids), *(len(swaps.swapped(ids, k).ids) for k in range(1, swaps.size))]) for ids in rows]
    check_lengths(longest, source=setting, max_length=None, context=context)
    return rows


def padded_inputs(
    rows: Sequence[list[int]], chosen: Sequence[int], batch_size: int, token_budget: int, model: nn.Module
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield batches of chosen rows of similar length, with their inputs padded on the right."""
    device = next(model.parameters()).device
    for places in token_batches([len(rows[i]) for i in chosen], batch_size, token_budget):
        part = [chosen[place] for place in places]
        ids = [torch.tensor(rows[i]) for i in part]
        padded = (pad_sequence(own, batch_first=True) for own in (ids, [torch.ones_like(row) for row in ids]))
        yield part, {name: own.to(device) for name, own in zip(("input_ids", "attention_mask"), padded, strict=True)}


def whole_partners(partners: Tensor, vocabulary: int) -> Tensor:
    """Extend partners to a head's rows, `(V,)`, of which there may be more than the tokenizer's tokens."""
    return torch.cat([partners, torch.arange(len(partners), vocabulary, device=partners.device)])


@torch.no_grad()
def counterfactual_divergences(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    swaps: Swaps,
    *,
    batch_size: int = 16,
    token_budget: int = TOKEN_BUDGET,
    last_only: bool = False,
) -> np.ndarray:
    """Return D of each text in nats, mean over its positions, `(N,)`; NaN for texts without a word to exchange.

    Positions are those that correspond in all of the exchanged texts, from the token that begins a text to its last
    one: all but those within a word of several tokens. So what is expected before anybody is named counts.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        texts: N texts.
        swaps: Of the tokenizer.
        batch_size: Texts at a time, at most; each is read once for each member of a group.
        token_budget: Tokens at a time, at most, padding included; a longer text is read alone.
        last_only: The last position alone: what is said next, as for "The woman worked as a".

    Raises:
        BALoraError: If a text has no tokens, or one of it and the exchanged ones more than the model takes.
    """
    rows = read_rows(tokenizer, texts, swaps, context_length(model.config, tokenizer))
    found = np.full(len(rows), np.nan)
    affected = [i for i, ids in enumerate(rows) if swaps.swapped(ids, 1).words]
    score = TokenScorer(model)
    for part, inputs in padded_inputs(rows, affected, batch_size, token_budget, model):
        for own, read, [hidden] in score.passes(inputs):  # (B, S, d)
            others = swap_batches(swaps, read)
            exchanged = align_outputs(others, [score.student.hidden_states(other.inputs) for other in others])
            for row, i in enumerate(part[own]):
                positions = exchanged.valid[row].nonzero()[-1 if last_only else 0 :, 0]
                states = [reading[row, positions] for reading in (hidden, *exchanged.hidden)]  # m of (n, d)
                found[i] = _divergences(states, score.student.head, exchanged.partners).mean().item()
    return found


def counterfactual_scores(values: np.ndarray, *, name: str = "divergence", seed: int = 0) -> dict[str, float]:
    """Return the mean over the texts that have a word to exchange.

    Args:
        values: `(N,)`, from `counterfactual_divergences` or `class_distances`; NaN is left out.
        name: Name of the mean.
        seed: Seed of the bootstrap.

    Returns:
        `divergence`, 0 without skew; `divergence_low` and `divergence_high`, its 95 % interval over texts; `texts`,
        how many have a word to exchange; `left_out`, how many have none.

    Raises:
        BALoraError: If no text has a word to exchange.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        raise BALoraError("texts: none has a word of the list; give texts with some, or another list of words")
    return {**mean_with_interval(name, known, seed=seed), "texts": len(known), "left_out": len(values) - len(known)}


def _divergences(states: list[Tensor], head: Head | None, partners: list[Tensor]) -> Tensor:
    """Return D at each of n positions, `(n,)`, float64.

    Args:
        states: Of the text and of each exchanged one, `(n, d)`.
        head: From these to logits; `None` if they are logits.
        partners: From `SwappedOutputs`, of the exchanged texts.
    """
    # m readings in double precision at once: a chunk of each is as many times smaller.
    rows = max(1, chunk_rows(states[0], head) // (2 * len(states)))
    found = []
    for logits in zip(*(logit_chunks(own, head, rows) for own in states), strict=True):
        log_q = torch.stack([z.double().log_softmax(-1) for z in logits])  # (m, n, V)
        for k, own in enumerate(partners, 1):
            log_q[k] = log_q[k][:, whole_partners(own, log_q.shape[-1])]
        found.append(_divergence(log_q))
    return torch.cat(found)


def _divergence(log_q: Tensor) -> Tensor:
    """Return the mean of KL(Q_j ‖ Q_k) over ordered pairs, of log-probabilities `(m, M, V)`: `(M,)`."""
    size = len(log_q)
    each = (log_q.exp() * (size * log_q - log_q.sum(0))).sum(-1)  # (m, M), Σ_k KL(Q_j ‖ Q_k)
    return each.sum(0) / (size * (size - 1))


@dataclass(frozen=True)
class Lean:
    """The members of a group that a model expects next, after each of N prompts.

    Attributes:
        distances: `(N,)`, total variation between the distribution of the next token and itself with words exchanged.
        log_masses: `(N, m)`, log-probability in nats that the next token is a word for this member of a group.
    """

    distances: np.ndarray
    log_masses: np.ndarray

    @property
    def log_odds(self) -> np.ndarray:
        """`(N, m)` in nats, of each member over the geometric mean of the others; 0 where all are as likely.

        Of two members the second's are the first's with the sign turned.
        """
        size = self.log_masses.shape[1]
        rest = self.log_masses.sum(1, keepdims=True) - self.log_masses
        return self.log_masses - rest / (size - 1)


@torch.no_grad()
def continuation_lean(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    swaps: Swaps,
    *,
    batch_size: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> Lean:
    """Measure how far the next token leans to one member after prompts without one, such as "The nurse said that".

    The distance is ½·Σ_v |P(v|x) − P(π_k(v)|x)|, mean over k from 1 to m − 1. It is 0 where the members of every group
    are as likely as one another, and at most the probability that one is named at all. Words of several tokens, in any
    member of their group, take no part: `Swaps.multi_token_words` has them.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        prompts: N prompts.
        swaps: Of the tokenizer.
        batch_size: Prompts at a time, at most.
        token_budget: Tokens at a time, at most, padding included; a longer prompt is read alone.

    Raises:
        BALoraError: If a prompt has no tokens or more than the model takes, or no group of words is of single tokens.
    """
    members = named_members(swaps)
    rows = read_rows(tokenizer, prompts, swaps, context_length(model.config, tokenizer), setting="prompts")
    distances, log_masses = np.empty(len(rows)), np.empty((len(rows), swaps.size))
    score = TokenScorer(model)
    for part, inputs in padded_inputs(rows, range(len(rows)), batch_size, token_budget, model):
        for own, read, [hidden] in score.passes(inputs):  # (B, S, d)
            last = read["attention_mask"].sum(1) - 1
            ends = hidden[torch.arange(len(last), device=last.device), last]  # (B, d)
            [logits] = logit_chunks(ends, score.student.head, len(ends))
            log_p = logits.double().log_softmax(-1).cpu()  # (B, V)
            p = log_p.exp()
            moved = [p - p[:, whole_partners(swaps.partners(steps), p.shape[1])] for steps in range(1, swaps.size)]
            distances[part[own]] = torch.stack(moved).abs().sum(-1).mean(0) / 2
            named = [log_p[:, (members == place).nonzero()[:, 0]].logsumexp(-1) for place in range(swaps.size)]
            log_masses[part[own]] = torch.stack(named, 1)
    return Lean(distances, log_masses)


def named_members(swaps: Swaps) -> Tensor:
    """Return `Swaps.members`, which must not be empty if a lean is to be measured.

    Raises:
        BALoraError: If no word of the list is a single token in all members of its group.
    """
    members = swaps.members()
    if (members < 0).all():
        raise BALoraError(
            "words: this tokenizer writes no group of them as single tokens, which a lean is measured on "
            f"({', '.join(swaps.multi_token_words[:3])}); give other words"
        )
    return members


def lean_scores(lean: Lean, names: Sequence[str], *, seed: int = 0) -> dict[str, Any]:
    """Return means over prompts, with 95 % intervals.

    Args:
        lean: From `continuation_lean`.
        names: What to call the m members, such as the list's first group.
        seed: Seed of the bootstrap.

    Returns:
        `lean`, the mean distance in [0, 1]; `mass`, the mean probability that a member is named, which bounds it;
        `log_odds` by name, `log_odds` in nats, of either sign: in it, and not in `lean`, preferences that point both
        ways cancel. With `lean` and `log_odds` their `_low` and `_high`. `prompts`: N.
    """
    return {
        **mean_with_interval("lean", lean.distances, seed=seed),
        "mass": float(np.exp(lean.log_masses).sum(1).mean()),
        "log_odds": {
            name: mean_with_interval("log_odds", own, seed=seed)
            for name, own in zip(names, lean.log_odds.T, strict=True)
        },
        "prompts": len(lean.distances),
    }
