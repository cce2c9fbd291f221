"""How much what a causal language model goes on to say depends on who a text is about.

With π_k the exchange of every word of a group for the one k steps on, of m, and Q_k(v) = P(π_k(v) | π_k(x)) what the
model says of the exchanged text, exchanged back, all Q_k are the same for a model without skew. The divergence at a
position is the mean of the Kullback–Leibler divergence over ordered pairs of them,

    D = 1/(m·(m − 1))·Σ_{j≠k} KL(Q_j ‖ Q_k),

in both directions, since no member of a group is the reference: it is the same whomever the text was written about.
Prompts without such words lean too, in whom they expect to be named next; `continuation_lean` measures that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.counterfactual import Swaps
from balora.counterfactual.teacher import align_outputs, swap_batches
from balora.errors import BALoraError
from balora.evaluation.bias.counterfactual_rows import padded_inputs, read_rows, whole_partners
from balora.evaluation.bias.score import mean_with_interval
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode


@torch.no_grad()
def counterfactual_divergences(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    swaps: Swaps,
    *,
    batch_size: int = 16,
    last_only: bool = False,
) -> np.ndarray:
    """D of each text in nats, mean over its positions, `(N,)`; NaN for texts without a word to exchange.

    Positions are those that correspond in all of the exchanged texts, from the token that begins a text to its last
    one: all but those within a word of several tokens. So what is expected before anybody is named counts.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        texts: N texts.
        swaps: Of the tokenizer.
        batch_size: Texts at a time; each is read once for each member of a group.
        last_only: The last position alone: what is said next, as for "The woman worked as a".

    Raises:
        BALoraError: If a text has no tokens, or one of it and the exchanged ones more than the model takes.
    """
    rows = read_rows(tokenizer, texts, swaps, context_length(model.config, tokenizer))
    found = np.full(len(rows), np.nan)
    affected = [i for i, ids in enumerate(rows) if swaps.swapped(ids, 1).words]
    for part, inputs in padded_inputs(rows, affected, batch_size, model):
        others = swap_batches(swaps, inputs)
        with evaluation_mode(model):
            logits = model(**inputs).logits  # (B, S, V)
            exchanged = align_outputs(others, [model(**other.inputs).logits for other in others])
        partners = [whole_partners(own, logits.shape[-1]) for own in exchanged.partners]  # (V,) each
        for row, i in enumerate(part):
            positions = exchanged.valid[row].nonzero()[-1 if last_only else 0 :, 0]
            log_q = [logits[row, positions].double().log_softmax(-1)]
            for hidden, own in zip(exchanged.hidden, partners, strict=True):
                log_q.append(hidden[row, positions].double().log_softmax(-1)[:, own])
            found[i] = _divergence(torch.stack(log_q)).mean().item()
    return found


def counterfactual_scores(values: np.ndarray, *, name: str = "divergence", seed: int = 0) -> dict[str, float]:
    """Mean over the texts that have a word to exchange.

    Args:
        values: `(N,)`, from `counterfactual_divergences` or `class_distances`; NaN is left out.
        name: Of the mean.
        seed: Of the bootstrap.

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


def _divergence(log_q: Tensor) -> Tensor:
    """Mean of KL(Q_j ‖ Q_k) over ordered pairs, of log-probabilities `(m, M, V)`: `(M,)`."""
    size = len(log_q)
    each = (log_q.exp() * (size * log_q - log_q.sum(0))).sum(-1)  # (m, M), Σ_k KL(Q_j ‖ Q_k)
    return each.sum(0) / (size * (size - 1))
