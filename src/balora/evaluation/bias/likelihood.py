"""Log-likelihoods of whole sentences, and of what continues a prompt, under a language model."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.evaluation.perplexity import IGNORED, padded_batches
from balora.fused import TokenScorer
from balora.utils.batches import TOKEN_BUDGET
from balora.utils.lengths import check_lengths, context_length
from balora.utils.progress import tracked


def log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    per_token: bool = False,
    batch_size: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> np.ndarray:
    """Return log P(text) = Σ_t log p(token_t | tokens before it) in nats, `(N,)`, float64.

    The first token follows `<s>`, or the token that ends a text if the tokenizer has no `<s>`, as in
    lm-evaluation-harness; no other special token is added or predicted.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        texts: N sentences.
        per_token: Divide by the text's number of tokens, so that a text of more tokens is not less likely for it.
        batch_size: Texts at a time, at most.
        token_budget: Tokens at a time, at most, padding included; a longer text is read alone.

    Raises:
        BALoraError: If a text has no tokens or more than the model takes, or the tokenizer has no token for a text's
            beginning or end.
    """
    rows = _ids(tokenizer, texts)
    how = {"per_token": per_token, "batch_size": batch_size, "token_budget": token_budget}
    return _causal(model, tokenizer, rows, [0] * len(rows), **how)


def continuation_log_likelihoods(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    per_token: bool = False,
    batch_size: int = 32,
    token_budget: int = TOKEN_BUDGET,
) -> np.ndarray:
    """Return log P(continuation | prompt) in nats, `(N,)`, float64; the prompt follows `<s>`, as in `log_likelihoods`.

    Both are tokenized together, and the continuation's tokens are those from the first that the prompt alone does not
    have.

    Args:
        model: A causal language model, adapted or not; left in the mode it was in.
        tokenizer: Its tokenizer.
        prompts: N texts that are given.
        continuations: N texts behind them, each with the space that it begins with.
        per_token: Divide by the continuation's number of tokens.
        batch_size: Texts at a time, at most.
        token_budget: Tokens at a time, at most, padding included; a longer text is read alone.

    Raises:
        BALoraError: As in `log_likelihoods`, a text being a prompt and its continuation.
    """
    rows = _ids(tokenizer, [prompt + text for prompt, text in zip(prompts, continuations, strict=True)])
    given = [_shared(*pair) for pair in zip(_ids(tokenizer, prompts), rows, strict=True)]
    how = {"per_token": per_token, "batch_size": batch_size, "token_budget": token_budget}
    return _causal(model, tokenizer, rows, given, **how)


def labelled_log_likelihoods(
    model: nn.Module,
    windows: Sequence[tuple[list[int], list[int]]],
    *,
    shift: int,
    batch_size: int,
    token_budget: int = TOKEN_BUDGET,
) -> np.ndarray:
    """Return Σ log p(label) in nats over the labels of each window, `(N,)`, float64.

    Args:
        model: A language model; left in the mode it was in.
        windows: Input ids and labels of each, `IGNORED` where a token does not count.
        shift: How far behind a position stands the token that it predicts: 1 in a causal model, whose labels are one
            longer than the ids, and 0 in a masked one.
        batch_size: Windows at a time, at most.
        token_budget: Tokens at a time, at most, padding included; a longer window is read alone.
    """
    device = next(model.parameters()).device
    score, found = TokenScorer(model), np.empty(len(windows))
    batches = [*padded_batches(windows, batch_size, token_budget)]
    for part, batch in tracked(batches, "reading sentences"):
        inputs = {name: value.to(device) for name, value in batch.items()}
        targets = inputs.pop("labels")[:, shift:]  # (B, S)
        counted = targets != IGNORED
        log_p = torch.zeros(targets.shape, dtype=torch.float64, device=device)
        log_p[counted] = score(inputs, targets, counted).log_p
        found[part] = log_p.sum(1).cpu().numpy()
    return found


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]


def _shared(first: list[int], second: list[int]) -> int:
    """Return the number of tokens that both begin with."""
    differs = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differs, min(len(first), len(second)))


def _causal(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[list[int]],
    given: Sequence[int],
    *,
    per_token: bool,
    batch_size: int,
    token_budget: int,
) -> np.ndarray:
    """Return the log-likelihood of each row's tokens after the first `given`, `(N,)`."""
    prefix = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if prefix is None:
        raise BALoraError(
            "tokenizer: has neither bos_token nor eos_token; set one, so that a text's first token follows it"
        )
    counts = [len(ids) - start for ids, start in zip(rows, given, strict=True)]
    if not all(counts):
        raise BALoraError(f"texts, row {counts.index(0) + 1}: has no tokens; leave it out")
    # One token less is read than there is text: the prefix takes the place of the last.
    check_lengths(map(len, rows), source="texts", max_length=None, context=context_length(model.config, tokenizer))
    windows = [
        ([prefix, *ids[:-1]], [IGNORED] * (1 + start) + ids[start:]) for ids, start in zip(rows, given, strict=True)
    ]
    found = labelled_log_likelihoods(model, windows, shift=1, batch_size=batch_size, token_budget=token_budget)
    return found / counts if per_token else found
