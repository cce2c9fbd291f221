"""Spectral: the share of a batch of logits that lies in its k leading directions."""

from typing import Literal

import torch
from torch import Tensor

from balora.losses.masking import select_rows


def spectral_loss(
    logits: Tensor,
    *,
    k: int,
    normalization: Literal["nuclear", "frobenius"] = "nuclear",
    mask: Tensor | None = None,
) -> Tensor:
    """Return minus the share of the k leading singular values of the logit matrix Z.

    −(Σ_{i≤k} σ_i)/(Σ_j σ_j) for `nuclear` (BA-LoRA, classification) and −(Σ_{i≤k} σ_i)/‖Z‖_F for `frobenius`
    (generation). Only singular values are differentiated, not vectors, so repeated values do no harm.

    Args:
        logits: `(..., V)`.
        k: Leading values counted, k ≥ 1. With k at or above the rank, `nuclear` is −1 whatever the logits.
        normalization: The whole that the leading values are a share of.
        mask: `(...)`, rows that count. If none counts, or all are zero, the loss is 0.

    Returns:
        Scalar, float32 or wider; NaN if a logit that counts is not finite.

    Raises:
        ValueError: If k < 1 or the normalization is unknown.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if normalization not in ("nuclear", "frobenius"):
        raise ValueError(f"normalization must be 'nuclear' or 'frobenius', not {normalization!r}")
    z = select_rows(logits, mask)  # (M, V)
    largest = z.detach().abs().amax() if z.numel() else z.new_zeros(())
    if largest == 0:
        return 0 * z.sum()
    # Both ratios are independent of scale, so dividing by the largest entry only prevents overflow. A factorization
    # raises on non-finite input, while a loss of NaN lets the caller report the step.
    z = torch.nan_to_num(z / largest)
    z = z if z.shape[0] >= z.shape[1] else z.T  # tall: n = min(M, V) columns
    with torch.no_grad():
        right = torch.linalg.eigh(z.T @ z).eigenvectors.flip(-1)  # (n, n), right singular vectors, leading first
    # For a singular vector v held fixed, ‖Zv‖ is σ and its derivative in Z is u·vᵀ, σ's own.
    if normalization == "frobenius":
        leading = torch.linalg.vector_norm(z @ right[:, :k], dim=0).sum()
        total = torch.linalg.vector_norm(z)
    else:
        singular_values = torch.linalg.vector_norm(z @ right, dim=0)  # (n,)
        leading, total = singular_values[:k].sum(), singular_values.sum()
    return -leading / total + (largest - largest)
