"""The bias path: the change of the final representation when every input embedding is shifted a little."""

from typing import Literal

import torch
from torch import Tensor


def bias_path_loss(
    shifted: Tensor, plain: Tensor, *, weights: Tensor | None = None, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Return ‖f(x + b) − f(x)‖², mean over rows: structural regularization's L_bias. Both sides have a gradient.

    Args:
        shifted: f(x + b), `(N, d)`.
        plain: f(x), `(N, d)`.
        weights: `(N,)`, not negative: weight of each row in the mean; `None` for equal weights. If they sum to 0 the
            loss is 0.
        reduction: Reduction over the d squared differences: `sum` is as printed, `mean` does not grow with the width.

    Returns:
        Scalar, float32 or wider.

    Raises:
        ValueError: If the shapes do not fit, or the reduction is unknown.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
    if shifted.ndim != 2 or shifted.shape != plain.shape or (weights is not None and len(weights) != len(plain)):
        shapes = ", ".join(f"{tuple(x.shape)}" for x in (shifted, plain, weights) if x is not None)
        raise ValueError(f"expected shifted and plain (N, d) and weights (N,), not {shapes}")
    dtype = torch.promote_types(torch.promote_types(shifted.dtype, plain.dtype), torch.float32)
    squares = (shifted.to(dtype) - plain.to(dtype)).square()  # (N, d)
    by_row = squares.sum(1) if reduction == "sum" else squares.mean(1)  # (N,)
    weights = torch.ones_like(by_row) if weights is None else weights.to(by_row)
    return (weights * by_row).sum() / weights.sum().clamp_min(torch.finfo(dtype).tiny)


def mean_of_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return f of a text, the mean of its tokens' vectors, `(N, d)`, float32 or wider; 0 for a row without tokens.

    Args:
        hidden: `(N, S, d)`.
        mask: `(N, S)`, 0 or false for padding; `None` for no padding.
    """
    hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if mask is None:
        return hidden.mean(1)
    mask = mask.bool().unsqueeze(-1)  # (N, S, 1)
    return hidden.where(mask, 0).sum(1) / mask.sum(1).clamp(min=1)


def counterfactual_direction(first: Tensor, second: Tensor) -> Tensor:
    """Return the unit vector along which the two sides of counterfactual pairs (he, she) differ most.

    The leading right singular vector of D = first − second, not centred: the direction with the largest Σ ⟨D_i, u⟩².
    It points from `second` to `first` in the sum over pairs.

    Args:
        first: `(P, d)`, embeddings of one side.
        second: `(P, d)`, embeddings of the other side, in the same order.

    Returns:
        `(d,)`, float32 or wider, without gradient.

    Raises:
        ValueError: If the shapes do not fit, there is no pair, or all pairs are of equal embeddings.
    """
    if first.ndim != 2 or first.shape != second.shape or not len(first):
        raise ValueError(f"expected two (P, d) of P ≥ 1 pairs, not {tuple(first.shape)} and {tuple(second.shape)}")
    differences = (first - second).detach()
    differences = differences.to(torch.promote_types(differences.dtype, torch.float32))
    if not differences.any():
        raise ValueError("the pairs' two sides have equal embeddings: there is no direction between them")
    direction = torch.linalg.svd(differences, full_matrices=False).Vh[0]  # (d,)
    return direction if (differences @ direction).sum() >= 0 else -direction
