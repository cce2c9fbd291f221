"""Selection of the rows that count, in float32 or wider: how every loss reads its logits.

Rows are selected instead of multiplied by zero, so that values in a padded row, infinities included, cannot reach the
loss or its gradient.
"""

import torch
from torch import Tensor


def select_rows(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Flatten `(..., V)` logits to the rows that count, `(M, V)`, in at least float32.

    Args:
        logits: `(..., V)`.
        mask: `(...)`, bool or 0/1, true where a row counts; `None` counts all.

    Raises:
        ValueError: If the mask's shape is not the logits' without the last axis.
    """
    if mask is None:
        rows = logits.reshape(-1, logits.shape[-1])  # (M, V)
    elif mask.shape != logits.shape[:-1]:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the logits need {tuple(logits.shape[:-1])}")
    else:
        rows = logits[mask.bool()]  # (M, V)
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def mean_of_rows(values: Tensor) -> Tensor:
    """Return the mean of `(M,)`; 0 with a zero gradient where M = 0."""
    return values.sum() / max(values.numel(), 1)
