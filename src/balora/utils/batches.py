"""What is done to a batch on its way to the model: some of its examples picked, the decoder's inputs filled in."""

from typing import Any

import torch
from peft.utils import shift_tokens_right
from torch import Tensor, nn


def pick_examples(count: int, rate: float) -> Tensor:
    """Which of `count` examples are picked, `(count,)` bool: each with the same chance, `rate`.

    As near to `rate`·count of them as whole numbers allow, rounded up or down at random.
    """
    if rate == 1:
        return torch.ones(count, dtype=torch.bool)
    number = int(rate * count + torch.rand(()).item())
    return torch.randperm(count) < number


def select_examples(inputs: dict[str, Any], picked: Tensor) -> dict[str, Any]:
    """The batch's tensors at the examples picked, `(B,)` bool; what has no batch axis stays as it is."""
    if picked.all():
        return inputs
    return {
        name: value[picked] if isinstance(value, Tensor) and value.shape[:1] == picked.shape else value
        for name, value in inputs.items()
    }


def inputs_and_mask(model: nn.Module, batch: dict[str, Any]) -> tuple[dict[str, Any], Tensor | None]:
    """What an evaluation gives the model of a batch, on its device and labels aside, and which outputs count.

    Args:
        model: The model, adapted or not.
        batch: Its inputs; in sequence-to-sequence models labels say what the decoder reads.

    Returns:
        The inputs, and a mask `(B, S)`: of what is not padding, or of the decoder's labelled tokens; `None` for all.
    """
    inputs = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, Tensor)}
    labels, mask = inputs.pop("labels", None), inputs.get("attention_mask")
    # A classifier on an encoder-decoder has one label a row.
    if model.config.is_encoder_decoder and labels.ndim == 2:
        return with_decoder_inputs(model, inputs, labels), labels != -100
    return inputs, mask


def with_decoder_inputs(model: nn.Module, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
    """The inputs of a sequence-to-sequence model, with what its decoder reads when these are its labels.

    Args:
        model: The model, adapted or not.
        inputs: Labels aside. Decoder inputs among them stay as they are.
        labels: `(B, S)`, −100 where there is none; logits for them come out at the same positions.
    """
    if inputs.get("decoder_input_ids") is not None or inputs.get("decoder_inputs_embeds") is not None:
        return inputs
    shift_right = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if shift_right is None:
        # M2M100 and Blenderbot have the common rule, but only inside their forward.
        config = model.config
        ids = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
    else:
        ids = shift_right(labels)
    return {**inputs, "decoder_input_ids": ids}
