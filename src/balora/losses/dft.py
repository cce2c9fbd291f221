"""Dynamic fine-tuning: cross-entropy weighted by the label's own probability (Wu et al. 2025, 2508.05629)."""

import torch
from torch import Tensor


def dft_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −sg(p_y)·log p_y of each row, `(m,)`, where sg passes no gradient.

    Args:
        logits: `(m, V)`; computed in at least float32.
        labels: `(m,)`.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = wide.log_softmax(-1).gather(-1, labels.unsqueeze(-1))[:, 0]  # (m,)
    return -log_p.exp().detach() * log_p
