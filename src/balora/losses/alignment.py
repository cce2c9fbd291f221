"""Alignment: distances between the adapters of several tasks on one frozen weight."""

import torch
from torch import Tensor


def alignment_loss(a: Tensor, b: Tensor, scaling: float = 1.0) -> Tensor:
    """Return the squared distances between tasks' weight changes, Σ_{i<j} ‖s·A_iB_i − s·A_jB_j‖_F², over all pairs.

    Structural regularization's multi-task alignment (L_align). No matrix of the weight's size is formed: with the
    inner products ⟨A_iB_i, A_jB_j⟩ = Σ (A_iᵀA_j) ∘ (B_iB_jᵀ), which take r × r matrices, the sum over pairs is
    n·Σ_i ‖ΔW_i‖² − ‖Σ_i ΔW_i‖².

    This is a difference: where adapters nearly agree its error is the rounding of n·Σ‖ΔW_i‖², and the result may be
    negative by as much.

    Args:
        a: `(n, out, r)`, the up-projections in PEFT's terms (`lora_B`).
        b: `(n, r, in)`, the down-projections (`lora_A`).
        scaling: s, PEFT's `lora_alpha / r`.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if a.ndim != 3 or b.ndim != 3 or (a.shape[0], a.shape[2]) != (b.shape[0], b.shape[1]):
        raise ValueError(f"expected a (n, out, r) and b (n, r, in), not {tuple(a.shape)} and {tuple(b.shape)}")
    n, _, r = a.shape
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    columns = a.to(dtype).transpose(0, 1).flatten(1)  # (out, n·r)
    rows = b.to(dtype).flatten(0, 1)  # (n·r, in)
    products = (columns.T @ columns) * (rows @ rows.T)  # (n·r, n·r)
    inner = products.unflatten(1, (n, r)).unflatten(0, (n, r)).sum((1, 3))  # (n, n), ⟨ΔW_i, ΔW_j⟩
    return scaling**2 * (n * inner.diagonal().sum() - inner.sum())
