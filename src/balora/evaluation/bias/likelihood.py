"""Log-likelihoods of whole sentences under a causal language model."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.data.lengths import check_lengths, context_length
from balora.errors import BALoraError
from balora.evaluation.language import IGNORED, padded_batches
from balora.modes import evaluation_mode


@torch.no_grad()
def log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    per_token: bool = False,
    batch_size: int = 32,
) -> np.ndarray:
    """log P(text) = Σ_t log p(token_t | tokens before it) in nats, `(N,)`, float64.

    The first token follows `<s>`, or the token that ends a text where there is none, as in lm-evaluation-harness; no
    other special token is added or predicted.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        texts: N sentences.
        per_token: Divide by the text's number of tokens, so that a text of more tokens is not less likely for it.
        batch_size: Texts at a time.

    Raises:
        BALoraError: If a text has no tokens or more than the model takes, or the tokenizer has no token for a text's
            beginning or end.
    """
    prefix = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if prefix is None:
        raise BALoraError(
            "tokenizer: has neither bos_token nor eos_token; set one, so that a text's first token follows it"
        )
    rows = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    if not all(rows):
        raise BALoraError(f"texts, row {[*map(bool, rows)].index(False) + 1}: has no tokens; leave it out")
    # One token less is read than there is text: the prefix takes the place of the last.
    check_lengths(map(len, rows), source="texts", max_length=None, context=context_length(model.config, tokenizer))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # so that little is padding
    windows = [([prefix, *rows[i][:-1]], [IGNORED, *rows[i]]) for i in order]
    device = next(model.parameters()).device
    sums = []
    for batch in padded_batches(windows, batch_size):
        inputs = {name: value.to(device) for name, value in batch.items()}
        targets = inputs.pop("labels")[:, 1:]  # (B, S), the next token of each position
        with evaluation_mode(model):
            logits = model(**inputs).logits  # (B, S, V)
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
        sums.append(-losses.double().sum(1).cpu().numpy())
    found = np.empty(len(rows))
    found[order] = np.concatenate(sums)
    return found / [len(ids) for ids in rows] if per_token else found
