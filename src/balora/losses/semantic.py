"""Semantic guidance: sentences of similar meaning should change the weights in similar ways."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def semantic_loss(
    a: Tensor,
    b: Tensor,
    m: Tensor,
    s: Tensor,
    *,
    min_similarity: float | None = None,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Return the distances between sentences' weight changes, Σ_{n<m} ‖A(M_n − M_m)B‖_F²·cos(s_n, s_m), over pairs.

    SeLoRA's regularizer, where ΔW(s) = A·f(s)·B with M = f(s). The paper prints ΔW₁ on both sides of the difference,
    which would make it 0; this is the evident reading. A pair of opposite meaning, with a negative cosine, is pushed
    apart, without bound.

    With P = AᵀA, Q = BBᵀ and the similarities' Laplacian L = diag(S·1) − S, the sum is Σ_{nm} L_nm·⟨P·M_n·Q, M_m⟩:
    r × r matrices per sentence, whatever the weight's size. M is centred first, which leaves differences unchanged, so
    that the rounding error follows the gates' spread and not their size.

    Args:
        a: A, `(out, r)`: PEFT's `lora_B`.
        b: B, `(r, in)`: PEFT's `lora_A`.
        m: Gates f(s), `(N, r, r)`.
        s: Sentence vectors, `(N, d)`; no gradient flows into their similarities.
        min_similarity: Smallest cosine of a pair that counts; 0 excludes opposites. `None` for all pairs.
        reduction: `mean` divides by the number of pairs that count, so that it does not grow with the batch.

    Returns:
        Scalar, float32 or wider; 0 where no pair counts.

    Raises:
        ValueError: If the shapes do not fit, or the reduction is unknown.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', not {reduction!r}")
    r = a.shape[-1]
    if a.ndim != 2 or b.ndim != 2 or b.shape[0] != r or m.shape[1:] != (r, r) or len(s) != len(m):
        shapes = ", ".join(f"{tuple(x.shape)}" for x in (a, b, m, s))
        raise ValueError(f"expected a (out, r), b (r, in), m (N, r, r) and s (N, d), not {shapes}")
    dtype = torch.promote_types(torch.promote_types(a.dtype, m.dtype), torch.float32)
    a, b, m = a.to(dtype), b.to(dtype), m.to(dtype)
    with torch.no_grad():
        unit = F.normalize(s.to(dtype), dim=1)
        similarity = unit @ unit.T  # (N, N)
        counts = ~torch.eye(len(s), dtype=torch.bool, device=s.device)
        if min_similarity is not None:
            counts &= similarity >= min_similarity
        similarity = similarity * counts
        laplacian = torch.diag(similarity.sum(1)) - similarity
        pairs = counts.sum() / 2
    centred = m - m.mean(0)
    inner = ((a.T @ a) @ centred @ (b @ b.T)).flatten(1) @ centred.flatten(1).T  # (N, N)
    total = (laplacian * inner).sum()
    return total / pairs.clamp_min(1) if reduction == "mean" else total
