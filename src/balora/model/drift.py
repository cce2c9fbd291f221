"""Drift: the distance of the adapted model's outputs from the pretrained model's on the same inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from balora.losses.masking import select_rows
from balora.utils.batches import inputs_and_mask
from balora.utils.modules import evaluation_mode
from balora.utils.progress import tracked


@torch.no_grad()
def measure_drift(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[dict[str, Tensor]],
    teacher: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """Compare student and teacher, token by token (example by example in classification).

    Args:
        model: The adapted model; its training mode is restored.
        batches: Model inputs as tensors. `attention_mask` excludes padding; in sequence-to-sequence models the labels
            give the decoder's input and which of its tokens count. Otherwise labels are ignored.
        teacher: Forward of the pretrained model; `None` for the `BALoraModel`'s own teacher.

    Returns:
        `kl_to_base`: mean KL(teacher ‖ student) in nats, temperature 1; `top1_agreement`: share of tokens with the
        same most likely continuation. With one output (regression) only `mse_to_base`, the mean squared difference.
        Empty without batches.
    """
    teacher = teacher or model.teacher_forward
    count, totals = 0, {}
    for batch in tracked(batches, "comparing with the base"):
        inputs, mask = inputs_and_mask(model, batch)
        with evaluation_mode(model):
            student, taught = model(**inputs).logits, teacher(**inputs).logits
        mask = mask if mask is not None and mask.shape == student.shape[:-1] else None
        student, taught = select_rows(student, mask), select_rows(taught, mask)  # (M, V)
        for name, value in drift_of(student, taught).items():
            totals[name] = totals.get(name, 0.0) + value * len(student)
        count += len(student)
    return {name: total / count for name, total in totals.items()}


def drift_of(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Compute the measures of `measure_drift` from logits `(M, V)`, M ≥ 1."""
    if student.shape[-1] == 1:
        return {"mse_to_base": (student - teacher).square().mean().item()}
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    agreement = (student.argmax(-1) == teacher.argmax(-1)).float().mean().item()
    return {"kl_to_base": max(divergence, 0.0), "top1_agreement": agreement}
