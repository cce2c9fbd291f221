"""Consistency: divergence of the student's output distribution from the teacher's."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from balora.losses.masking import mean_of_rows, select_rows


def consistency_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
    mask: Tensor | None = None,
) -> Tensor:
    """Return the Kullback–Leibler divergence between teacher and student, mean over rows.

    With P = softmax(Z_P / T) of the teacher and F = softmax(Z_F / T) of the student, `forward` is T²·KL(P ‖ F)
    (BA-LoRA's consistency regularizer) and `reverse` is T²·KL(F ‖ P) (the structural method's L_KL). T² keeps the
    gradient's size independent of the temperature.

    Args:
        student_logits: Z_F, `(..., V)`.
        teacher_logits: Z_P, `(..., V)`; not detached here.
        temperature: T > 0.
        direction: `forward` or `reverse`, as above.
        mask: `(...)`, rows that count; if none counts the loss is 0.

    Returns:
        Scalar in nats times T², float32 or wider.

    Raises:
        ValueError: If shapes differ, or direction or temperature is not one of the above.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student {tuple(student_logits.shape)} and teacher {tuple(teacher_logits.shape)} differ")
    if direction not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', not {direction!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    student = F.log_softmax(select_rows(student_logits, mask) / temperature, dim=-1)  # (M, V)
    teacher = F.log_softmax(select_rows(teacher_logits, mask) / temperature, dim=-1)  # (M, V)
    inner, outer = (student, teacher) if direction == "forward" else (teacher, student)
    divergence = (outer.exp() * (outer - inner)).sum(-1)  # (M,)
    return temperature**2 * mean_of_rows(divergence)
