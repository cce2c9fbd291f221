"""The replay term: cross-entropy of the student on texts that the pretrained model generated, or on your own.

The self-anchor term (`balora.model.anchor_term`) reads the pretrained model's whole distribution, self-generated
replay its samples alone: the same texts and the same passes of the student, without a teacher.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from balora.anchors import Anchors
from balora.errors import BALoraError
from balora.fused import fused_token_loss, head_aside, head_of
from balora.model.base import BALoraModel


def replay_term(
    model: BALoraModel, student: Callable[..., Any], anchors: Anchors | None, count: int, *, shift: int, fused: bool
) -> Tensor:
    """Return the unweighted cross-entropy on a draw of texts, a mean over tokens: one more pass of the student.

    Args:
        model: A causal language model in training.
        student: Its forward without the objective.
        anchors: Texts to draw from.
        count: Sequences in the micro-batch; `anchor_share` texts are drawn for each, rounded, at least one.
        shift: The logits at position t predict the token at t + shift.
        fused: Whether to compute from hidden states.

    Raises:
        BALoraError: If there are no texts to draw from.
    """
    config, base = model.balora_config, model.get_base_model()
    if anchors is None:
        raise BALoraError(
            "replay_weight: there are no texts; give get_balora_model tokenizer=…, or before training call "
            "model.set_anchors with the result of balora.anchors.sample_anchors on the pretrained model, or use 0"
        )
    drawn = anchors.draw(max(1, round(config.anchor_share * count)))
    inputs = {name: value.to(model.device) for name, value in drawn.items()}  # (n, S) each
    mask = inputs["attention_mask"]
    labels = inputs["input_ids"].masked_fill(mask == 0, -100)
    items = (labels[:, shift:] != -100).sum()
    if not fused:
        logits = student(**inputs, use_cache=False).logits[:, :-shift].float()  # (n, S − shift, V)
        summed = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, shift:].flatten(), reduction="sum")
        return summed / items
    with head_aside(base) as received:
        student(**inputs, use_cache=False)
    plain = replace(config, task_loss="cross_entropy")
    loss, _ = fused_token_loss(
        received[0], head_of(base), labels, mask, None, plain, {}, shift=shift, total_items=items, share=1.0
    )
    return loss
