"""Model inputs: their number of rows, a subset of their rows, and the inputs that a decoder needs."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.utils import shift_tokens_right
from torch import Tensor, nn

#: Inputs with one entry for each row.
BATCHED_INPUTS = ("input_ids", "inputs", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds", "labels")
#: Tokens of a batch in a measurement, padding included, unless a recipe states other ones.
TOKEN_BUDGET = 4096


def count_rows(inputs: dict[str, Any]) -> int | None:
    """Return the number of rows of a model's inputs; `None` if none of `BATCHED_INPUTS` is given."""
    return next((len(inputs[name]) for name in BATCHED_INPUTS if inputs.get(name) is not None), None)


def token_batches(lengths: Sequence[int], batch_size: int, token_budget: int = TOKEN_BUDGET) -> Iterator[list[int]]:
    """Yield batches of rows of similar length, by their indices.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows of a batch at most.
        token_budget: Rows times tokens of the longest at most; a longer row is a batch of its own.
    """
    part: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) == batch_size or lengths[row] * (len(part) + 1) > token_budget):
            yield part
            part = []
        part.append(row)
    if part:
        yield part


def pick_examples(count: int, rate: float) -> Tensor:
    """Sample a mask `(count,)` that selects each example with probability `rate`.

    The number selected is `rate`·count, rounded up or down at random.
    """
    if rate == 1:
        return torch.ones(count, dtype=torch.bool)
    number = int(rate * count + torch.rand(()).item())
    return torch.randperm(count) < number


def select_examples(inputs: dict[str, Any], picked: Tensor) -> dict[str, Any]:
    """Index the batch's tensors by a mask `(B,)`; entries without a batch axis are returned unchanged."""
    if picked.all():
        return inputs
    return {
        name: value[picked] if isinstance(value, Tensor) and value.shape[:1] == picked.shape else value
        for name, value in inputs.items()
    }


def inputs_and_mask(model: nn.Module, batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """Return a batch's inputs without labels, on the model's device, and a mask of the outputs to evaluate.

    Args:
        model: The model, with or without an adapter.
        batch: Its inputs; a sequence-to-sequence model's decoder inputs are made from the labels.

    Returns:
        The inputs, and a mask `(B, S)` of tokens that are not padding, or of the decoder's labelled tokens; `None`
        for all.
    """
    inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
    labels, mask = inputs.pop("labels", None), inputs.get("attention_mask")
    # An encoder-decoder classifier has one label per row.
    if model.config.is_encoder_decoder and labels.ndim == 2:
        return with_decoder_inputs(model, inputs, labels), labels != -100
    return inputs, mask


def with_decoder_inputs(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
    """Add the decoder inputs that belong to these labels to a sequence-to-sequence model's inputs.

    Args:
        model: The model, with or without an adapter.
        inputs: Inputs without labels; existing decoder inputs are kept.
        labels: `(B, S)`, −100 where a position has none; their logits are at the same positions.
    """
    if inputs.get("decoder_input_ids") is not None or inputs.get("decoder_inputs_embeds") is not None:
        return inputs
    shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift_right is None:
        # M2M100 and Blenderbot shift labels the usual way, but only inside their forward.
        config = model.config
        ids = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    else:
        ids = shift_right(labels)
    return {**inputs, "decoder_input_ids": ids}
