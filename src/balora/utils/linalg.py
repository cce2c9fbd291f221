"""Leading singular vectors, exact or by a seeded randomized range finder."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERSAMPLING = 10


def leading_svd(
    matrix: Tensor, rank: int, *, niter: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the `rank` leading singular triplets U `(m, rank)`, S `(rank,)`, Vᵀ `(rank, n)` of a matrix.

    Args:
        matrix: `(m, n)`, float32 or float64.
        rank: Number of triplets, at most min(m, n).
        niter: `None` for the exact decomposition; otherwise subspace iterations of the randomized one (Halko,
            Martinsson and Tropp, 2011, algorithms 4.4 and 5.1), whose cost is rank/min(m, n) of the exact one's.
        seed: Seed of the random test matrix; the global generator is not used.
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


def leading_left_vectors(
    apply: Callable[[Tensor], Tensor], like: Tensor, rank: int, *, niter: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Compute leading left singular vectors `(m, rank)` and values `(rank,)` of a matrix Z given as q ↦ Z·Zᵀ·q.

    Args:
        apply: Maps q `(m, n)` to Z·Zᵀ·q `(m, n)`.
        like: `(m, ...)`, for m, dtype and device.
        rank: Number of vectors; at most m are returned.
        niter: See `leading_svd`; each iteration squares the ratio of leading to trailing values.
        seed: See `leading_svd`.
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
    # eigh raises on non-finite input; a NaN loss instead lets the trainer report the step.
    values, vectors = torch.linalg.eigh(torch.nan_to_num((small + small.T) / 2))
    return basis @ vectors.flip(-1)[:, :rank], values.flip(-1)[:rank].clamp(min=0).sqrt()
