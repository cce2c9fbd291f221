"""Several processes: what the launcher set up, batch rows gathered from all, and weights sharded over them.

Launch facts (`is_distributed`, `is_main_process`) are read from the environment, so they hold before a process group
exists. `gather_rows` serves loss terms of a whole batch's matrix. The rest reads weights that FSDP2 or ZeRO-3 sharded.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

#: Part that Accelerate's activation checkpointing adds to parameter names.
CHECKPOINT_WRAPPER = "_checkpoint_wrapped_module."
#: Name parts of the weights that are saved with an adapter.
ADAPTER_NAME_PARTS = ("lora_", "modules_to_save")


def is_distributed() -> bool:
    """Return whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Return whether this is the process that writes files."""
    return not is_distributed() or os.environ["RANK"] == "0"


def is_sharded_launch() -> bool:
    """Return whether the launcher asked for a sharded model instead of a replica in each process."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return is_distributed() and any(os.environ.get(name, "false").lower() == "true" for name in names)


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        torch.distributed.barrier()


def broadcast_from_main(make: Callable[[], Any]) -> Any:
    """Call `make` on the main process alone and return its result on all of them.

    Args:
        make: Called without arguments; it must not use collectives.
    """
    if not is_distributed():
        return make()
    made = [make() if is_main_process() else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes in rank order, differentiably; the result is the same on each.

    The number of rows may differ between processes and may be 0. In the backward pass the gradients of all processes
    for a row are summed on the process that it came from. With a loss that each process weighs by its share of the
    batch, and a trainer that averages gradients over processes, a term of these rows has the single-process gradient.

    Every process must call this the same number of times. With one process the rows are returned unchanged.

    Args:
        rows: `(M, n)`; n is the same everywhere.

    Returns:
        `(M₁ + … + M_W, n)`.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All-gather of row blocks, padded to the longest, since collectives need equal shapes."""

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


def is_sharded(model: nn.Module) -> bool:
    """Return whether weights are gathered collectively, so that all processes must run the same passes."""
    return isinstance(model, FSDPModule) or is_deepspeed_zero3_enabled()


def is_zero3(tensor: Tensor) -> bool:
    """Return whether ZeRO-3 sharded this weight, by the attribute that DeepSpeed itself checks."""
    return hasattr(tensor, "ds_id")


def gather_weight(tensor: Tensor) -> Tensor:
    """Return the full weight where FSDP2 or ZeRO-3 sharded it, and any other tensor unchanged.

    All processes must call this.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if is_zero3(tensor):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def gather_adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapter's and all trained weights by name, unsharded and on the CPU.

    All processes must call this. Frozen base weights are not gathered.

    Args:
        model: A model with an adapter, sharded by FSDP2 or ZeRO-3, or not sharded.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # weights left unsharded by a forward pass may be rounded to its precision
    state = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        if tensor.requires_grad or any(part in name for part in ADAPTER_NAME_PARTS):
            state[name] = gather_weight(tensor).detach().cpu()
    return state


@torch.no_grad()
def broadcast_parameters(parameters: Iterable[Tensor], device: torch.device) -> None:
    """Overwrite the parameters of all processes with those of the first.

    An SVD may return other signs on another machine, and FSDP2 takes each process's shard from that process: without
    this the shards of one factor could come from different decompositions.

    Args:
        parameters: The same ones on every process, not sharded.
        device: A device that the process group communicates between.
    """
    for parameter in parameters:
        value = parameter.detach().to(device).contiguous()
        dist.broadcast(value, src=0)
        parameter.copy_(value)
