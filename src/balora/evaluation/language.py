"""Language modelling: held-out loss and perplexity, both weighted by token."""

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.utils.batches import with_decoder_inputs
from balora.utils.modules import evaluation_mode

IGNORED = -100


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> float:
    """Mean negative log-likelihood in nats over every labelled token of all batches.

    Args:
        model: A causal or sequence-to-sequence language model.
        batches: Inputs with `labels`, −100 where a token does not count, as the model takes them: a causal model's
            logits predict the label one position on, a sequence-to-sequence model's the one at their own. A causal
            model's labels may be one longer than its ids, so that the last id predicts something too.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        labels = inputs.pop("labels")  # (B, S)
        shift = 1
        if model.config.is_encoder_decoder:
            inputs, shift = with_decoder_inputs(model, inputs, labels), 0
        with evaluation_mode(model):
            logits = model(**inputs).logits  # (B, S, V)
        logits, labels = logits[:, : labels.shape[1] - shift], labels[:, shift:]
        counts = labels != IGNORED
        total += F.cross_entropy(logits[counts].float(), labels[counts], reduction="sum").item()
        count += int(counts.sum())
    return total / count


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context: int | None,
    batch_size: int = 16,
) -> float:
    """exp of the mean negative log-likelihood per token of all texts, each on its own.

    A text is tokenized as the tokenizer does, its first token (`<s>`, where there is one) is given and the rest are
    predicted. A text longer than the context is read through windows that advance by half of it, so that every token
    but the first window's has at least half a context before it, and each is counted once.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Texts of at least two tokens; shorter ones say nothing and are left out.
        context: Longest window in tokens; `None` for no limit.
        batch_size: Windows at a time.
    """
    windows = [w for text in texts for w in text_windows(tokenizer(text, verbose=False)["input_ids"], context)]
    windows.sort(key=lambda window: len(window[0]))  # so that little is padding
    return math.exp(held_out_loss(model, padded_batches(windows, batch_size)))


def text_windows(ids: list[int], context: int | None) -> Iterator[tuple[list[int], list[int]]]:
    """Input ids and labels of each window of a text, as `perplexity` reads it; none of fewer than two tokens."""
    if len(ids) < 2:
        return
    width = min(len(ids), context or len(ids))
    yield ids[:width], ids[:width]
    counted = width
    while counted < len(ids):
        end = min(counted + width // 2, len(ids))
        start = end - width
        yield ids[start:end], [IGNORED] * (counted - start) + ids[counted:end]
        counted = end


def padded_batches(windows: list[tuple[list[int], list[int]]], batch_size: int) -> Iterator[dict[str, Tensor]]:
    """Batches for `held_out_loss` from windows in their order, padded on the right.

    Args:
        windows: Input ids and labels of each; labels as long as the ids, or one longer in all windows.
        batch_size: Windows at a time.
    """
    for first in range(0, len(windows), batch_size):
        batch = windows[first : first + batch_size]
        length = max(len(ids) for ids, _ in batch)
        rows = [(length - len(ids), ids, labels) for ids, labels in batch]
        yield {
            "input_ids": torch.tensor([ids + [0] * short for short, ids, _ in rows]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * short for short, ids, _ in rows]),
            "labels": torch.tensor([labels + [IGNORED] * short for short, _, labels in rows]),
        }
