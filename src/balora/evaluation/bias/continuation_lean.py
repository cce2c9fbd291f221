"""Whom a causal language model expects to be named after a prompt that names nobody, such as "The nurse said that".

A text without a word to exchange stays itself, but what the model says next need not: with π_k the exchange of every
word of a group for the one k steps on, of m, a model without skew has P(v|x) = P(π_k(v)|x). The lean is the total
variation between the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.counterfactual import Swaps
from balora.errors import BALoraError
from balora.evaluation.bias.counterfactual_rows import padded_inputs, read_rows, whole_partners
from balora.evaluation.bias.score import mean_with_interval
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode


@dataclass(frozen=True)
class Lean:
    """What a model expects to be named after each of N prompts.

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
) -> Lean:
    """How far the next token after prompts that name nobody leans, such as "The nurse said that".

    The distance is ½·Σ_v |P(v|x) − P(π_k(v)|x)|, mean over k from 1 to m − 1. It is 0 where the members of every group
    are as likely as one another, and at most the probability that one is named at all. Words of several tokens, in any
    member of their group, take no part: `Swaps.multi_token_words` has them.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        prompts: N prompts.
        swaps: Of the tokenizer.
        batch_size: Prompts at a time.

    Raises:
        BALoraError: If a prompt has no tokens or more than the model takes, or no group of words is of single tokens.
    """
    members = named_members(swaps)
    rows = read_rows(tokenizer, prompts, swaps, context_length(model.config, tokenizer), setting="prompts")
    distances, log_masses = np.empty(len(rows)), np.empty((len(rows), swaps.size))
    for part, inputs in padded_inputs(rows, range(len(rows)), batch_size, model):
        with evaluation_mode(model):
            logits = model(**inputs).logits  # (B, S, V)
        last = inputs["attention_mask"].sum(1) - 1
        log_p = logits[torch.arange(len(part), device=last.device), last].double().log_softmax(-1).cpu()  # (B, V)
        p = log_p.exp()
        moved = [p - p[:, whole_partners(swaps.partners(steps), p.shape[1])] for steps in range(1, swaps.size)]
        distances[part] = torch.stack(moved).abs().sum(-1).mean(0) / 2
        own = [log_p[:, (members == place).nonzero()[:, 0]].logsumexp(-1) for place in range(swaps.size)]
        log_masses[part] = torch.stack(own, 1)
    return Lean(distances, log_masses)


def named_members(swaps: Swaps) -> Tensor:
    """`Swaps.members`, of which there must be some for a lean to be measured.

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
    """Means over prompts, with 95 % intervals over them.

    Args:
        lean: From `continuation_lean`.
        names: What to call the m members, such as the list's first group.
        seed: Of the bootstrap.

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
