"""`balora.fused.row_gradients` on a GPU: one Triton program per row, two reads of its logits and one write.

The first sweep over the vocabulary keeps the running maximum and, relative to it, the sums for the normalizers and
the divergence; the second overwrites each logit by its gradient. PyTorch's own operations would read or write the
logits more than a dozen times and need buffers several times as large. The entropy among the top K reads a few hundred
numbers of a row and stays in PyTorch.

Triton comes with PyTorch's builds for CUDA and ROCm only, so this module is imported where it is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from balora.fused.row_gradients import RowObjective, RowWeights, largest

#: Logits that one program holds at a time, and its number of warps.
BLOCK = 4096
WARPS = 8

# Finite, so that a block of −∞ only gives exp(−∞) = 0 and not exp(−∞ + ∞).
LOWEST = tl.constexpr(-3e38)
NO_LABEL = tl.constexpr(-100)


def differentiate_rows_on_gpu(
    logits: Tensor, teacher_logits: Tensor | None, weights: RowWeights, objective: RowObjective
) -> Tensor:
    """Do the work of `differentiate_rows` on contiguous rows of logits; the teacher's logits are not changed."""
    rows, columns = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    values = torch.zeros(3, rows, dtype=wide, device=logits.device)
    if rows == 0:
        return values
    if objective.top_k:
        values[2], spread, where = _entropy(logits, objective)  # before the kernel overwrites the logits
    with torch.cuda.device_of(logits):  # Triton launches on the current device, wherever the tensors are
        _differentiate_row[(rows,)](
            logits,
            teacher_logits,
            weights.labels.contiguous(),
            weights.task.contiguous(),
            weights.consistency.contiguous(),
            values,
            logits.stride(0),
            0 if teacher_logits is None else teacher_logits.stride(0),
            columns,
            WIDE=tl.float64 if wide == torch.float64 else tl.float32,
            # Compile-time constants take the precision of their operands; arguments would be float32 at best.
            TEMPERATURE=float(objective.temperature) if teacher_logits is not None else 1.0,
            REVERSE=objective.reverse,
            SOFTCAP=None if objective.softcap is None else float(objective.softcap),
            BLOCK=min(BLOCK, triton.next_power_of_2(columns)),
            num_warps=WARPS,
        )
    if objective.top_k:
        logits.scatter_add_(-1, where, (weights.entropy.unsqueeze(-1) * spread).to(logits.dtype))
    return values


def _entropy(logits: Tensor, objective: RowObjective) -> tuple[Tensor, Tensor, Tensor]:
    """Return Σ p'·log p' of each row `(M,)`, its gradient `(M, K)`, and the gradient's columns."""
    top, where = largest(logits, objective.top_k)  # of the raw logits: a softcap keeps their order
    top = top.to(torch.promote_types(logits.dtype, torch.float32))  # (M, K)
    slope = 1.0
    if objective.softcap is not None:
        tanh = (top / objective.softcap).tanh()
        top, slope = objective.softcap * tanh, 1 - tanh.square()
    log_p = top.log_softmax(-1)
    value = (log_p.exp() * log_p).sum(-1)
    return value, log_p.exp() * (log_p - value.unsqueeze(-1)) * slope, where


@triton.jit
def _differentiate_row(
    logits: tl.tensor,
    teacher_logits: tl.tensor,
    labels: tl.tensor,
    task: tl.tensor,
    consistency: tl.tensor,
    values: tl.tensor,
    stride: tl.tensor,
    teacher_stride: tl.tensor,
    columns: tl.tensor,
    WIDE: tl.constexpr,
    TEMPERATURE: tl.constexpr,
    REVERSE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)  # M·V outgrows 32 bits
    logits += row * stride
    if teacher_logits is not None:
        teacher_logits += row * teacher_stride
    label = tl.load(labels + row)
    labelled = _capped(tl.load(logits + tl.maximum(label, 0)).to(WIDE), SOFTCAP)

    peak = tl.full((), LOWEST, WIDE)
    total = tl.zeros((), WIDE)  # Σ exp(z − peak)
    student = tl.zeros((), WIDE)  # Σ exp((z − peak)/T)
    taught_peak = tl.full((), LOWEST, WIDE)
    teacher = tl.zeros((), WIDE)  # Σ exp((z_P − taught_peak)/T)
    cross = tl.zeros((), WIDE)  # Σ (z_P − z)·exp(…), student's or teacher's by direction
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        z = tl.where(inside, _capped(tl.load(logits + column, inside, 0.0).to(WIDE), SOFTCAP), float("-inf"))
        old, peak = peak, tl.maximum(peak, tl.max(z, 0))
        tempered = tl.exp((z - peak) * (1 / TEMPERATURE))
        shrink = tl.exp((old - peak) * (1 / TEMPERATURE))
        total = total * _cooled(shrink, old - peak, TEMPERATURE) + tl.sum(_cooled(tempered, z - peak, TEMPERATURE), 0)
        if teacher_logits is not None:
            student = student * shrink + tl.sum(tempered, 0)
            taught = _capped(tl.load(teacher_logits + column, inside, 0.0).to(WIDE), SOFTCAP)
            gap = tl.where(inside, taught - z, 0.0)
            taught = tl.where(inside, taught, float("-inf"))
            old, taught_peak = taught_peak, tl.maximum(taught_peak, tl.max(taught, 0))
            taught_tempered = tl.exp((taught - taught_peak) * (1 / TEMPERATURE))
            taught_shrink = tl.exp((old - taught_peak) * (1 / TEMPERATURE))
            teacher = teacher * taught_shrink + tl.sum(taught_tempered, 0)
            if REVERSE:
                cross = cross * shrink + tl.sum(tempered * gap, 0)
            else:
                cross = cross * taught_shrink + tl.sum(taught_tempered * gap, 0)

    tl.store(values + row, tl.where(label == NO_LABEL, 0.0, peak + tl.log(total) - labelled))
    share = tl.load(task + row).to(WIDE)
    if teacher_logits is not None:
        mean_gap = cross / (student if REVERSE else teacher) * (1 / TEMPERATURE)
        divergence = mean_gap + (peak - taught_peak) * (1 / TEMPERATURE) + tl.log(student) - tl.log(teacher)
        if REVERSE:
            divergence = -divergence
        tl.store(values + tl.num_programs(0) + row, divergence * (TEMPERATURE * TEMPERATURE))
        pull = tl.load(consistency + row).to(WIDE) * TEMPERATURE

    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < columns
        z = _capped(tl.load(logits + column, inside, 0.0).to(WIDE), SOFTCAP)
        tempered = tl.exp((z - peak) * (1 / TEMPERATURE))
        gradient = _cooled(tempered, z - peak, TEMPERATURE) * (share / total) - tl.where(column == label, share, 0.0)
        if teacher_logits is not None:
            taught = _capped(tl.load(teacher_logits + column, inside, 0.0).to(WIDE), SOFTCAP)
            if REVERSE:
                gradient += tempered * (pull / student) * (mean_gap - (taught - z) * (1 / TEMPERATURE))
            else:
                taught_tempered = tl.exp((taught - taught_peak) * (1 / TEMPERATURE))
                gradient += pull * (tempered / student - taught_tempered / teacher)
        if SOFTCAP is not None:
            tanh = z * (1 / SOFTCAP)
            gradient *= 1 - tanh * tanh
        tl.store(logits + column, gradient, inside)


@triton.jit
def _capped(x: tl.tensor, SOFTCAP: tl.constexpr) -> tl.tensor:
    """Compute c·tanh(x/c) from the exponential, which the interpreter and every GPU have."""
    if SOFTCAP is None:
        z = x
    else:
        z = SOFTCAP * (2 * tl.sigmoid(x * (2 / SOFTCAP)) - 1)
    return z


@triton.jit
def _cooled(tempered: tl.tensor, logarithm: tl.tensor, TEMPERATURE: tl.constexpr) -> tl.tensor:
    """Compute exp(logarithm) from exp(logarithm/T): T = 1 and T = 2 need no second exponential."""
    if TEMPERATURE == 1:
        whole = tempered
    elif TEMPERATURE == 2:
        whole = tempered * tempered
    else:
        whole = tl.exp(logarithm)
    return whole
