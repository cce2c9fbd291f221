"""One pass over the LM head, a chunk of tokens at a time: loss and gradient without ever holding all logits.

For each chunk, z = h·Wᵀ and z_P = h_P·Wᵀ, from them the gradient dz in place (`balora.fused.row_gradients`, plus
`balora.fused.token_terms` for terms without a closed form), and dh = dz·W: three products with the head where autograd
needs eight, and one or two chunks of logits where it keeps several whole ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from balora.counterfactual.teacher import SwappedOutputs, average_logits
from balora.fused.head import Head
from balora.fused.row_gradients import RowObjective, RowWeights, differentiate_rows
from balora.fused.token_terms import WeightedTerm, differentiate_token_terms

#: Logits of one chunk, by kind of device: enough rows to multiply at full speed, few enough to be small.
CHUNK_ELEMENTS = {"cpu": 11 * 2**20, "cuda": 2**26}
FEWEST_ROWS = 256
HAS_TRITON = find_spec("triton") is not None


def head_loss(
    hidden: Tensor,
    head: Head,
    teacher_hidden: Tensor | None,
    teacher_head: Head | None,
    weights: RowWeights,
    objective: RowObjective,
    others: SwappedOutputs | None = None,
    functions: Sequence[WeightedTerm] = (),
    teacher_logits: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the rows' terms, differentiable in hidden states, head weight and head bias.

    Args:
        hidden: `(M, d)`, the student's.
        head: The student's.
        teacher_hidden: `(M_P, d)`: the first M_P rows have a teacher, `None` for none.
        teacher_head: The teacher's, the same as the student's unless that one is trained.
        weights: Labels and weights of the M rows.
        objective: What to compute; the softcap is the head's.
        others: For a counterfactual teacher, its other readings of the first M_P rows; its head has no softcap.
        functions: K terms without a closed form.
        teacher_logits: In place of the teacher's hidden states, its logits as `teacher_head_logits` returns them,
            `(M_P, V)` in pieces.

    Returns:
        The loss, and the terms' unweighted values `(3 + K, M)`: task, consistency, entropy, then the K functions,
        without gradient.
    """
    teacher = (None, None, None) if teacher_hidden is None else scaled(teacher_hidden, teacher_head)
    others = _scaled_others(others, teacher_head)
    return _HeadLoss.apply(*scaled(hidden, head), *teacher, weights, objective, others, functions, teacher_logits)


def teacher_head_logits(hidden: Tensor, head: Head, others: SwappedOutputs | None, temperature: float) -> Tensor:
    """Return the teacher's logits `(M, V)` as the chunked pass computes them, before any softcap.

    Args:
        hidden: `(M, d)`.
        head: The teacher's.
        others: As for `head_loss`.
        temperature: Temperature of the divergence that reads them, for a counterfactual teacher.
    """
    hidden, weight, bias = scaled(hidden, head)
    dtype = _product_dtype(weight)
    buffer = hidden.new_empty(len(hidden), len(weight), dtype=dtype)
    others = _scaled_others(others, head)
    return _teacher_chunk(hidden.to(dtype), weight.to(dtype), bias, others, temperature, buffer)


def _scaled_others(others: SwappedOutputs | None, head: Head | None) -> SwappedOutputs | None:
    if others is None or head.scale == 1:
        return others
    return replace(others, hidden=[hidden * head.scale for hidden in others.hidden])


def _product_dtype(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def scaled(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return hidden states, weight and bias that give the head's logits, before the softcap, without its scale."""
    if head.scale == 1:
        return hidden, head.weight, head.bias
    return hidden * head.scale, head.weight, None if head.bias is None else head.bias * head.scale


class _HeadLoss(torch.autograd.Function):
    """Compute gradients in the forward pass, where the chunk's logits are at hand, and scale them in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor | None,
        teacher_weight: Tensor | None,
        teacher_bias: Tensor | None,
        weights: RowWeights,
        objective: RowObjective,
        others: SwappedOutputs | None,
        functions: Sequence[WeightedTerm],
        teacher_logits: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = _product_dtype(weight)
        wide = torch.promote_types(dtype, torch.float32)
        w = weight.to(dtype)  # (V, d), a copy under autocast only
        w_teacher = w if teacher_weight is weight else None if teacher_weight is None else teacher_weight.to(dtype)
        rows, taught = len(hidden), sum(map(len, teacher_logits if teacher_hidden is None else [teacher_hidden]))
        size = max(CHUNK_ELEMENTS.get(device, 2**26) // len(w), FEWEST_ROWS)
        z_buffer = hidden.new_empty(min(size, rows), len(w), dtype=dtype)
        teacher_buffer = torch.empty_like(z_buffer) if teacher_hidden is not None else None
        values = hidden.new_zeros(3 + len(functions), rows, dtype=wide)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if ctx.needs_input_grad[2] else None
        # In units of the largest weight, so that gradients far below half precision's smallest number survive it.
        by_term = [weights.task, weights.consistency, weights.entropy, *(one.weights for one in functions)]
        shares = torch.stack(by_term)  # (3 + K, M)
        unit = shares.max().clamp(min=torch.finfo(wide).tiny) if rows else shares.new_ones(())
        relative = shares / unit
        scaled = RowWeights(weights.labels, *relative[:3])
        # A chunk has a teacher for all of its rows or for none.
        bounds = [*range(0, taught, size), *range(taught, rows, size), rows]
        for start, stop in pairwise(bounds):
            chunk = slice(start, stop)
            h = hidden[chunk].to(dtype)  # (m, d)
            z = project(h, w, bias, z_buffer)  # (m, V)
            z_teacher = None
            if start < taught and teacher_hidden is None:
                z_teacher = _rows_of(teacher_logits, chunk)
            elif start < taught:
                h_teacher, said = teacher_hidden[chunk].to(dtype), None if others is None else others.rows(chunk)
                z_teacher = _teacher_chunk(
                    h_teacher, w_teacher, teacher_bias, said, objective.temperature, teacher_buffer
                )
            # The products above are in half precision already; autocast would take sums over a row to it too.
            with torch.autocast(device, enabled=False):
                added = None  # (m, V), from the logits before they are overwritten
                if functions:
                    values[3:, chunk], added = differentiate_token_terms(
                        functions, z, z_teacher, relative[3:, chunk], objective.softcap
                    )
                known = z_teacher if objective.divergence else None
                values[:3, chunk] = _row_gradients_for(z, objective)(z, known, scaled[chunk], objective)
                if added is not None:
                    z += added
            d_hidden[chunk] = z @ w
            if d_weight is not None:
                d_weight += z.T @ h
            if d_bias is not None:
                d_bias += z.sum(0, dtype=wide)
        gradients = [d_hidden, d_weight, d_bias]
        like = [hidden, weight, bias]
        ctx.save_for_backward(*(None if g is None else g.to(x.dtype) for g, x in zip(gradients, like, strict=True)))
        ctx.unit = unit
        ctx.mark_non_differentiable(values)
        return (values * shares).sum(), values

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale = d_loss * ctx.unit
        gradients = [None if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors]
        return (*gradients, *[None] * 8)


def _teacher_chunk(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    others: SwappedOutputs | None,
    temperature: float,
    buffer: Tensor,
) -> Tensor:
    """Compute the teacher's logits of a chunk, averaged over the exchanges if there are any."""
    z = project(hidden, weight, bias, buffer)  # (m, V)
    if others is None:
        return z
    # In full width: logarithms of small probabilities are long, and half precision rounds them much.
    wide = torch.promote_types(z.dtype, torch.float32)
    logits = [project(other.to(z.dtype), weight, bias, torch.empty_like(z)).to(wide) for other in others.hidden]
    return average_logits(z.to(wide), logits, others.partners, others.valid, temperature)


def _rows_of(pieces: Sequence[Tensor], chunk: slice) -> Tensor:
    """Return the rows of a chunk from pieces of consecutive rows, a view where one piece has them all."""
    found, first = [], 0
    for piece in pieces:
        own = piece[max(chunk.start - first, 0) : max(chunk.stop - first, 0)]
        if len(own):
            found.append(own)
        first += len(piece)
    return found[0] if len(found) == 1 else torch.cat(found)


def project(hidden: Tensor, weight: Tensor, bias: Tensor | None, buffer: Tensor) -> Tensor:
    """Compute hidden·weightᵀ + bias in the buffer's first rows."""
    out = buffer[: len(hidden)]
    if bias is None:
        return torch.mm(hidden, weight.T, out=out)
    return torch.addmm(bias.to(weight.dtype), hidden, weight.T, out=out)


def _row_gradients_for(logits: Tensor, objective: RowObjective) -> Callable[..., Tensor]:
    """Return the row gradients for the logits' device: Triton's on a GPU where it is installed, else PyTorch's.

    Triton's kernels do not have DFT.
    """
    if HAS_TRITON and logits.device.type == "cuda" and not objective.dft:
        # Triton comes only with PyTorch's builds for CUDA and ROCm.
        from balora.fused.triton_row_gradients import differentiate_rows_on_gpu

        return differentiate_rows_on_gpu
    return differentiate_rows
