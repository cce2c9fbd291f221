"""Texts as a causal language model reads them, exchanged or not: tokens, batches, and partners of its head's rows."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from balora.counterfactual import Swaps
from balora.errors import BALoraError
from balora.utils.lengths import check_lengths


def read_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    swaps: Swaps,
    context: int | None,
    *,
    setting: str = "texts",
) -> list[list[int]]:
    """The tokens of each text behind the one that begins a text, or ends one, where the tokenizer has it.

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
    rows: Sequence[list[int]], chosen: Iterable[int], batch_size: int, model: nn.Module
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Chosen rows of like length together, and their inputs, padded on the right."""
    device = next(model.parameters()).device
    order = sorted(chosen, key=lambda i: len(rows[i]))
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        ids = [torch.tensor(rows[i]) for i in part]
        padded = (pad_sequence(own, batch_first=True) for own in (ids, [torch.ones_like(row) for row in ids]))
        yield part, {name: own.to(device) for name, own in zip(("input_ids", "attention_mask"), padded, strict=True)}


def whole_partners(partners: Tensor, vocabulary: int) -> Tensor:
    """Partners of a head's rows `(V,)`, of which there may be more than the tokenizer's tokens."""
    return torch.cat([partners, torch.arange(len(partners), vocabulary, device=partners.device)])
