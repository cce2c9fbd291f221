"""Leading singular vectors, exact or by a seeded randomized range finder."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERSAMPLING = 10


def leading_svd(
    matrix: Tensor, rank: int, *, niter: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` leading singular triplets U (m, rank), S (rank,), Vᵀ (rank, n) of a float matrix (m, n).

    Args:
        matrix: `(m, n)`, float32 or float64.
        rank: How many triplets; at most min(m, n).
        niter: `None` for the exact decomposition; otherwise subspace iterations of the randomized one (Halko,
            Martinsson and Tropp, 2011, algorithms 4.4 and 5.1), whose cost is rank/min(m, n) of the exact one's.
        seed: Of the random test matrix; the same seed gives the same triplets and leaves the global state alone.
    """
    if niter is None:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    generator = torch.Generator(matrix.device).manual_seed(seed)
    width = min(rank + OVERSAMPLING, *matrix.shape)
    probe = torch.randn(matrix.shape[1], width, generator=generator, device=matrix.device, dtype=matrix.dtype)
    basis = torch.linalg.qr(matrix @ probe).Q  # (m, width)
    for _ in range(niter):
        basis = torch.linalg.qr(matrix.T @ basis).Q  # (n, width)
        basis = torch.linalg.qr(matrix @ basis).Q  # (m, width)
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vh[:rank]


def leading_left(
    apply: Callable[[Tensor], Tensor], like: Tensor, rank: int, *, niter: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Leading left singular vectors U (m, rank) and values (rank,) of a matrix Z known only by q ↦ Z·Zᵀ·q.

    Args:
        apply: Takes and gives `(m, n)`.
        like: `(m, ...)`, for m, dtype and device.
        rank: How many; at most m come back.
        niter: As for `leading_svd`; an iteration here squares how far the leading values stand out.
        seed: As for `leading_svd`.
    """
    if niter is None:
        basis = torch.eye(len(like), dtype=like.dtype, device=like.device)
    else:
        generator = torch.Generator(like.device).manual_seed(seed)
        width = min(rank + OVERSAMPLING, len(like))
        basis = torch.randn(len(like), width, generator=generator, dtype=like.dtype, device=like.device)
        for _ in range(niter):
            basis = torch.linalg.qr(apply(basis)).Q  # (m, width)
    small = basis.T @ apply(basis)
    # A factorization raises on what is not finite; a loss that is NaN lets the caller report the step.
    values, vectors = torch.linalg.eigh(torch.nan_to_num((small + small.T) / 2))
    return basis @ vectors.flip(-1)[:, :rank], values.flip(-1)[:rank].clamp(min=0).sqrt()


#: Largest accepted difference, as a share of the largest logit: rounding in each precision, with room.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def agree(logits: Tensor, expected: Tensor) -> bool:
    """Whether logits are the expected ones within the rounding of the latter's precision; never where one is NaN."""
    if logits.shape != expected.shape:
        return False
    difference = (logits - expected).abs().max()
    return bool(difference <= TOLERANCE[expected.dtype] * expected.abs().max())
