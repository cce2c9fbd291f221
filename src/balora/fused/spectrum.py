"""The spectral term without logits: −(Σ_{i≤k} σ_i)/‖Z‖_F of Z = H·Wᵀ from H and the d × d matrix G = WᵀW.

Z·Zᵀ = H·G·Hᵀ, so the left singular vectors u_i come from products with G alone. Held fixed, σ_i = ‖Zᵀu_i‖ has σ's own
derivative: σ_i² = p·G·pᵀ with p = u_iᵀ·H, and ‖Z‖_F² = tr(H·G·Hᵀ). A head bias is one more column of H and of W. Under
a softcap Z is not a product, and Z·Zᵀ is summed over chunks of the vocabulary instead.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from balora.fused.head import Head
from balora.utils.linalg import leading_left_vectors

#: Rows up to which singular vectors are exact, and iterations of the seeded randomized range finder beyond.
EXACT_ROWS = 256
ITERATIONS = 4
#: Under a softcap each iteration passes over the whole vocabulary.
CAPPED_ITERATIONS = 1
VOCABULARY_CHUNK = 2**13


class HeadSpectrum:
    """The spectral term of one head; caches G while the head is frozen and unchanged.

    Args:
        seed: Seed of the random probe: the same hidden states give the same term, before and after a resume.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._gram: tuple[Tensor, int, Tensor] | None = None

    def loss(self, hidden: Tensor, head: Head, *, k: int) -> Tensor:
        """Return −(Σ_{i≤k} σ_i)/‖Z‖_F of the logits of `hidden` `(M, d)`, differentiable; 0 without rows.

        Exact up to `EXACT_ROWS` rows.
        """
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        h = hidden.to(wide)  # (M, d)
        with torch.autocast(hidden.device.type, enabled=False):
            if head.softcap is not None:
                return _CappedSpectrum.apply(h, head.weight, head.bias, head.scale, head.softcap, k, self.seed)
            # The term does not depend on scale, so the head's own is omitted.
            if head.bias is not None:
                h = torch.cat([h, h.new_ones(len(h), 1)], -1)  # (M, d + 1)
            g = self._gram_of(head, wide)
            with torch.no_grad():
                u, _ = leading_left_vectors(lambda q: h @ (g @ (h.T @ q)), h, k, **_method(h, ITERATIONS, self.seed))
            p = u.T @ h  # (k, d)
            squares = ((p @ g) * p).sum(-1)  # (k,), σ²
            exists = _exists(squares, h)
            leading = squares.where(exists, 1).sqrt().where(exists, 0).sum()
            total = ((h @ g) * h).sum().clamp(min=torch.finfo(wide).tiny).sqrt()
            return -leading / total

    def _gram_of(self, head: Head, dtype: torch.dtype) -> Tensor:
        """Return G = WᵀW `(d, d)`, with the bias as a further column of W."""
        trained = head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad)
        if not trained and self._gram is not None:
            weight, written, gram = self._gram
            if weight is head.weight and written == weight._version and gram.device == weight.device:
                return gram
        gram = 0
        for w, b in _vocabulary(head.weight, head.bias):
            columns = w.to(dtype) if b is None else torch.cat([w, b.unsqueeze(-1)], -1).to(dtype)  # (v, d)
            gram = gram + columns.T @ columns
        if not trained:
            self._gram = (head.weight, head.weight._version, gram)
        return gram


def _method(hidden: Tensor, iterations: int, seed: int) -> dict[str, Any]:
    return {"niter": None if len(hidden) <= EXACT_ROWS else iterations, "seed": seed}


def _exists(squares: Tensor, hidden: Tensor) -> Tensor:
    """Return which σ² `(k,)` exceed rounding; the singular vectors and gradients of the others are meaningless."""
    noise = max(hidden.shape) * torch.finfo(squares.dtype).eps
    return squares > noise * squares.max() if len(squares) else squares > 0


def _vocabulary(weight: Tensor, bias: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    for start in range(0, len(weight), VOCABULARY_CHUNK):
        rows = slice(start, start + VOCABULARY_CHUNK)
        yield weight[rows], None if bias is None else bias[rows]


class _CappedSpectrum(torch.autograd.Function):
    """The term of Z = c·tanh(scale·(H·Wᵀ + b)/c), by chunks of the vocabulary, with its gradient in the forward pass.

    dZ = (Σσ/‖Z‖³)·Z − U·diag(1/σ)·Uᵀ·Z/‖Z‖, chunk by chunk as Z itself.
    """

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float, k: int, seed: int
    ) -> Tensor:
        def chunks() -> Iterator[tuple[slice, Tensor, Tensor]]:
            for number, (w, b) in enumerate(_vocabulary(weight.detach(), bias)):
                w = w.to(h.dtype)  # (v, d)
                x = h @ w.T if b is None else torch.addmm(b.to(h.dtype), h, w.T)
                start = number * VOCABULARY_CHUNK
                yield slice(start, start + len(w)), w, softcap * torch.tanh(x * (scale / softcap))  # (M, v)

        squares = h.new_zeros(())

        def apply(q: Tensor) -> Tensor:
            squares.zero_()
            out = torch.zeros_like(q)
            for _, _, z in chunks():
                squares.add_(z.square().sum())
                out += z @ (z.T @ q)
            return out

        u, sigma = leading_left_vectors(apply, h, k, **_method(h, CAPPED_ITERATIONS, seed))  # (M, k), (k,)
        exists = _exists(sigma.square(), h)
        sigma = sigma.where(exists, 0)
        inverse = (1 / sigma.where(exists, 1)).where(exists, 0)
        total = squares.clamp(min=torch.finfo(h.dtype).tiny).sqrt()
        d_hidden = torch.zeros_like(h)
        d_weight = torch.zeros_like(weight, dtype=h.dtype) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=h.dtype) if ctx.needs_input_grad[2] else None
        for rows, w, z in chunks():
            dz = (sigma.sum() / total / total / total) * z - (u * (inverse / total)) @ (u.T @ z)
            dz *= scale * (1 - (z / softcap).square())
            d_hidden += dz @ w
            if d_weight is not None:
                d_weight[rows] = dz.T @ h
            if d_bias is not None:
                d_bias[rows] = dz.sum(0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = (h.dtype, weight.dtype, None if bias is None else bias.dtype)
        return -sigma.sum() / total

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (*(None if g is None else (g * d_loss).to(dtype) for g, dtype in pairs), None, None, None, None)
