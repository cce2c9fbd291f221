"""Per-token regularizers given as plain functions of logits: gradients a chunk at a time by `torch.func`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TokenLoss = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class TokenTerm:
    """A regularizer that is a mean over tokens, at its present weight.

    Attributes:
        weight: λ.
        needs_teacher: Whether it reads the teacher's logits; only tokens that the teacher saw then count.
        loss: From the student's logits `(m, V)` and the teacher's `(m, V)`, `None` unless `needs_teacher`, to `(m,)`;
            `None` for the terms whose gradient has a closed form in `row_gradients`, consistency and diversity.
    """

    weight: float
    needs_teacher: bool = False
    loss: TokenLoss | None = None


@dataclass(frozen=True)
class WeightedTerm:
    """A term without a closed form, and its weight in each row.

    Attributes:
        term: With a `loss`.
        weights: `(M,)`, 0 in rows that do not count, which for a term that needs the teacher are all rows without one.
    """

    term: TokenTerm
    weights: Tensor


def differentiate_token_terms(
    terms: Sequence[WeightedTerm],
    logits: Tensor,
    teacher_logits: Tensor | None,
    weights: Tensor,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute the values of K terms on a chunk and the gradient of their weighted sum.

    Args:
        terms: K of them.
        logits: As for `differentiate_token_loss`.
        teacher_logits: `(m, V)`; `None` for rows without a teacher, where terms that need one are left out.
        weights: `(K, m)`, of the chunk's rows.
        softcap: As for `differentiate_token_loss`.

    Returns:
        Values `(K, m)` and the gradient `(m, V)`, in float32 or wider.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    values = logits.new_zeros(len(terms), len(logits), dtype=wide)
    total = torch.zeros_like(logits, dtype=wide)
    for k, weighted in enumerate(terms):
        seen = teacher_logits if weighted.term.needs_teacher else None
        if seen is not None or not weighted.term.needs_teacher:
            values[k], gradient = differentiate_token_loss(weighted.term.loss, logits, seen, weights[k], softcap)
            total += gradient
    return values, total


def differentiate_token_loss(
    loss: TokenLoss, logits: Tensor, teacher_logits: Tensor | None, weights: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Compute the values of a per-token loss on a chunk and the gradient of their weighted sum.

    Args:
        loss: The function. It gets logits in float32 or wider, after the softcap.
        logits: `(m, V)`, before any softcap; left as they are.
        teacher_logits: `(m, V)` alike; `None` for a loss that reads none.
        weights: `(m,)`; rows of weight 0 are left out, so that nothing in them can reach the gradient.
        softcap: c of z = c·tanh(x/c); `None` for none.

    Returns:
        Values `(m,)`, 0 in rows left out, and the gradient `(m, V)` in float32 or wider.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    live = weights != 0  # (m,)
    student, weights = logits[live].to(wide), weights[live]  # (n, V), (n,)
    values, gradient = logits.new_zeros(len(live), dtype=wide), torch.zeros_like(logits, dtype=wide)
    if not len(student):
        return values, gradient
    teacher = None if teacher_logits is None else _capped(teacher_logits[live].to(wide), softcap)

    def weighted(x: Tensor) -> tuple[Tensor, Tensor]:
        by_token = loss(_capped(x, softcap), teacher)  # (n,)
        if by_token.shape != weights.shape:
            raise ValueError(f"a per-token loss returned {tuple(by_token.shape)} for {len(weights)} tokens")
        return (weights * by_token).sum(), by_token

    gradient[live], (_, values[live]) = torch.func.grad_and_value(weighted, has_aux=True)(student)
    return values, gradient


def _capped(x: Tensor, softcap: float | None) -> Tensor:
    return x if softcap is None else softcap * torch.tanh(x / softcap)
