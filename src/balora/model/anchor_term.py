"""What anchors add to a step: the divergence of the student from the pretrained model on a few of them.

KL(teacher ‖ student) at temperature 1, the mean over their tokens. Sequences that the teacher wrote at temperature 1
make that an estimate of the divergence between the two models' distributions over whole texts, which is 0 only where
they are equal. The task's own batches say nothing of texts that are unlike them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from balora.anchors import Anchors
from balora.fused import HeadSpectrum, Taught, fused_generation_loss, head_aside, head_of
from balora.losses import consistency_loss
from balora.model.base import BALoraModel
from balora.model.teacher_output import taught_hidden, taught_logits

ALONE = {"consistency": 1.0, "diversity": 0.0, "spectral": 0.0}


@dataclass(frozen=True)
class TaughtAnchors:
    """Anchors of a step, and what the teacher says of them.

    Attributes:
        inputs: `(n, S)` each.
        teacher: Its hidden states, or its logits `(n, S, V)`.
    """

    inputs: dict[str, Tensor]
    teacher: Taught | Tensor


def teach(model: BALoraModel, anchors: Anchors, count: int, *, fused: bool) -> TaughtAnchors:
    """Draw anchors and run the teacher on them, before the student's own pass.

    Args:
        model: A causal language model.
        anchors: To draw from.
        count: n.
        fused: Whether hidden states are wanted, rather than logits.
    """
    inputs = {name: value.to(model.device) for name, value in anchors.draw(count).items()}
    everyone = torch.ones(count, dtype=torch.bool, device=model.device)
    teacher = taught_hidden(model, inputs, everyone, 1.0) if fused else taught_logits(model, inputs, 1.0)
    return TaughtAnchors(inputs, teacher)


def anchor_term(
    model: BALoraModel,
    student: Callable[..., Any],
    taught: TaughtAnchors,
    spectrum: HeadSpectrum,
    *,
    shift: int,
    fused: bool,
) -> Tensor:
    """The unweighted divergence on them, scalar: one more pass of the student.

    Args:
        model: In training.
        student: Its forward without the objective.
        taught: From `teach`.
        spectrum: Of the model's head.
        shift: The logits at position t predict the token at t + shift.
        fused: As there.
    """
    inputs = {**taught.inputs, "use_cache": False}
    mask = inputs["attention_mask"]
    if not fused:
        return consistency_loss(student(**inputs).logits, taught.teacher, temperature=1.0, mask=mask)
    base = model.get_base_model()
    with head_aside(base) as received:
        student(**inputs)
    loss, _ = fused_generation_loss(
        received[0],
        head_of(base),
        torch.full_like(mask, -100),
        mask,
        taught.teacher,
        replace(model.balora_config, temperature=1.0, consistency_direction="forward"),
        ALONE,
        spectrum,
        shift=shift,
        total_items=1,
        share=1.0,
    )
    return loss
