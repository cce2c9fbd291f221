"""Rows of all processes, for the terms that look at a whole batch's matrix: gathered forwards, summed backwards."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered_rows(rows: Tensor) -> Tensor:
    """The rows of every process, in the order of their ranks, differentiable: the same on each.

    A process may have another number of rows, or none. Backwards the gradients that the processes have for a row are
    added up, on the one that it came from. With a loss that each process weighs by its share of the batch, and a
    trainer that averages gradients over processes, a term of these rows has the gradient that one process would give.

    Every process must call this the same number of times. With one process the rows are returned as they are.

    Args:
        rows: `(M, n)`; n is the same everywhere.

    Returns:
        `(M₁ + … + M_W, n)`.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """Pads to the longest, since collectives want equal shapes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        world = dist.get_world_size()
        counts = [rows.new_zeros((), dtype=torch.long) for _ in range(world)]
        dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
        ctx.counts = [int(count) for count in counts]
        padded = rows.new_zeros(max(ctx.counts), rows.shape[1])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.split(ctx.counts)[dist.get_rank()]
