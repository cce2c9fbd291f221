"""The self-anchor term: the student's divergence from the pretrained model on texts that the latter generated.

KL(teacher ‖ student) at temperature 1, the mean over the anchors' tokens. Sequences that the teacher sampled at
temperature 1 make that an estimate of the divergence between the two models' distributions over whole texts, which is
0 only where they are equal. The task's own batches say nothing about texts that are unlike them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from balora.anchors import Anchors
from balora.errors import BALoraError
from balora.fused import Taught, TokenTerm, fused_token_loss, head_aside, head_of
from balora.losses import consistency_loss
from balora.model.base import BALoraModel
from balora.model.teacher_output import taught_by_logits, taught_hidden, taught_logits
from balora.teacher_cache import SequenceCache
from balora.utils.distributed import is_sharded


@dataclass(frozen=True)
class TaughtAnchors:
    """The anchors of a step with the teacher's output on them.

    Attributes:
        inputs: `(n, S)` each.
        teacher: The teacher's hidden states, or its logits `(n, S, V)`.
    """

    inputs: dict[str, Tensor]
    teacher: Taught | Tensor


def teach_anchors(
    model: BALoraModel, anchors: Anchors | None, count: int, weights: dict[str, float], *, fused: bool
) -> TaughtAnchors | None:
    """Draw a step's anchors and run the teacher on them, before the student's own pass.

    Args:
        model: A causal language model.
        anchors: Texts to draw from.
        count: Sequences in the micro-batch; `anchor_share` anchors are drawn for each, rounded, at least one.
        weights: λ of each term in this step; that of `anchor` is 0 where `anchor_every` leaves it out.
        fused: Whether to keep the teacher's hidden states instead of its logits.

    Returns:
        `None` in a step without the term.

    Raises:
        BALoraError: If there are no anchors to draw from.
    """
    config = model.balora_config
    if not config.anchor_weight:
        return None
    if anchors is None:
        raise BALoraError(
            "anchor_weight: there are no anchors; give get_balora_model tokenizer=…, or before training call "
            "model.set_anchors with the result of balora.anchors.sample_anchors on the pretrained model, or use 0"
        )
    cache = None if is_sharded(model) or not fused else model.teacher_cache
    # In a step without anchors too, so that the rows leave them their memory from the first step on.
    by_logits = cache is not None and _reserve(model, anchors, cache)
    if not weights["anchor"]:
        return None
    drawn = anchors.draw(max(1, round(config.anchor_share * count)))
    inputs = {name: value.to(model.device) for name, value in drawn.items()}
    if not fused:
        return TaughtAnchors(inputs, taught_logits(model, inputs, 1.0))
    everyone = torch.ones(len(inputs["input_ids"]), dtype=torch.bool, device=model.device)
    if by_logits:
        return TaughtAnchors(inputs, taught_by_logits(model, inputs, everyone, 1.0, cache))
    return TaughtAnchors(inputs, taught_hidden(model, inputs, everyone, 1.0, cache, anchors=True))


def _reserve(model: BALoraModel, anchors: Anchors, cache: SequenceCache) -> bool:
    """Reserve memory for the anchors; return whether the teacher's logits on all of them fit, which saves its head.

    On a GPU a product with the head takes less than its memory is worth.
    """
    weight = model.get_output_embeddings().weight  # (V, d)
    states = weight.shape[1] * (1 if model.swaps is None else model.swaps.size)
    token = weight.element_size() * int(anchors.attention_mask.sum()) / 2**20
    fit = weight.device.type == "cpu" and token * (weight.shape[0] + states) <= cache.memory_mb
    cache.reserved_mb = token * (weight.shape[0] if fit else 0)
    return fit


def anchor_term(
    model: BALoraModel, student: Callable[..., Any], taught: TaughtAnchors, *, shift: int, fused: bool
) -> Tensor:
    """Return the unweighted divergence on the anchors, scalar: one more pass of the student.

    Args:
        model: In training.
        student: Its forward without the objective.
        taught: From `teach_anchors`.
        shift: The logits at position t predict the token at t + shift.
        fused: As for `teach_anchors`.
    """
    inputs = {**taught.inputs, "use_cache": False}
    mask = inputs["attention_mask"]
    if not fused:
        return consistency_loss(student(**inputs).logits, taught.teacher, temperature=1.0, mask=mask)
    base = model.get_base_model()
    with head_aside(base) as received:
        student(**inputs)
    loss, _ = fused_token_loss(
        received[0],
        head_of(base),
        torch.full_like(mask, -100),
        mask,
        taught.teacher,
        replace(model.balora_config, temperature=1.0, consistency_direction="forward"),
        {"consistency": TokenTerm(1.0, needs_teacher=True)},
        shift=shift,
        total_items=1,
        share=1.0,
    )
    return loss
