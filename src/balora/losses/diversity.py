"""Diversity: losses against collapsed outputs, by the classes' covariance or the entropy of the top-K tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.losses.masking import mean_of_rows, select_rows


def covariance_diversity_loss(logits: Tensor) -> Tensor:
    """Return the squared off-diagonal covariance of the class logits (BA-LoRA, classification).

    (1/D)·Σ_{i≠j} C_ij² with C = Z̄ᵀZ̄/(N−1), Z̄ the logits centred over the batch. One example has no covariance: 0.

    Args:
        logits: Z, `(..., D)`, flattened to N examples of D classes.

    Returns:
        Scalar, float32 or wider.
    """
    z = select_rows(logits, None)  # (N, D)
    centred = z - z.mean(0) if len(z) else z
    covariance = centred.T @ centred / max(len(z) - 1, 1)  # (D, D)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return off_diagonal.square().sum() / z.shape[-1]


def topk_entropy_loss(logits: Tensor, *, top_k: int, mask: Tensor | None = None) -> Tensor:
    """Return the negative entropy among each row's top-K logits, mean over rows (BA-LoRA, generation).

    Σ_v p'_v·log p'_v with p' the softmax over only the row's K largest logits: minimizing it spreads probability among
    tokens that are plausible already and leaves the tail of the vocabulary unchanged.

    Args:
        logits: `(..., V)`.
        top_k: K ≥ 1; more than V means V.
        mask: `(...)`, rows that count; if none counts the loss is 0.

    Returns:
        Scalar in nats between −log K and 0, float32 or wider.

    Raises:
        ValueError: If top_k < 1.
    """
    if top_k < 1:
        raise ValueError(f"top_k must be at least 1, not {top_k}")
    z = select_rows(logits, mask)  # (M, V)
    log_p = F.log_softmax(z.topk(min(top_k, z.shape[-1]), dim=-1).values, dim=-1)  # (M, K)
    return mean_of_rows((log_p.exp() * log_p).sum(-1))
