"""Singular vectors, exact or by a seeded randomized range finder."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERSAMPLING = 10
#: Matrices at most this wide or high are decomposed in their own precision, which takes milliseconds.
SMALL = 256


def exact_svd(matrix: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Compute some of a matrix's singular triplets: U `(m, k)`, S `(k,)`, Vᵀ `(k, n)`, S descending.

    A large float32 matrix is decomposed by the eigenvectors of its Gram matrix in float64: faster than an SVD in
    float32, and more exact, since squaring singular values costs half of float64's digits and float32 has fewer. Each
    product s·u·vᵀ is then as exact; u itself only where s > 1e-8 of the largest.

    Args:
        matrix: W `(m, n)`, float32 or float64.
        part: Which of the min(m, n) triplets, by descending singular value.
    """
    if min(matrix.shape) <= SMALL or matrix.dtype == torch.float64:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, part], s[part], vh[part]
    is_wide = matrix.shape[0] <= matrix.shape[1]
    wide = (matrix if is_wide else matrix.T).to(torch.float64)  # (p, q), p ≤ q
    left = torch.linalg.eigh(wide @ wide.T).eigenvectors.flip(1)[:, part]  # (p, k)
    right = left.T @ wide  # (k, q), diag(S)·Vᵀ
    # Norms rather than roots of eigenvalues, whose error of 1e-16 of the largest would be 1e-8 in a root.
    s = right.norm(dim=1)
    right = torch.where(s[:, None] > 0, right / s[:, None], 0)
    left, s, right = (one.to(matrix.dtype) for one in (left, s, right))
    return (left, s, right) if is_wide else (right.T, s, left.T)


def svd_bytes(matrix: Tensor) -> int:
    """Return about how much memory `exact_svd` of a matrix takes."""
    return 8 * (2 * matrix.numel() + 4 * min(matrix.shape) ** 2)  # factors, and LAPACK's own of twice the vectors


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
        return exact_svd(matrix, slice(rank))
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
