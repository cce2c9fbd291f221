"""Rows of all processes, for the terms that look at a whole batch's matrix: gathered forwards, summed backwards."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

from balora.errors import BALoraError


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


#: In the names of what stands within Accelerate's activation checkpointing.
CHECKPOINTED = "_checkpoint_wrapped_module."
#: In the names of what is saved of an adapter.
SAVED = ("lora_", "modules_to_save")


def is_sharded(model: nn.Module) -> bool:
    """Whether processes gather this model's weights together, so that all must run the same passes."""
    return isinstance(model, FSDPModule) or is_deepspeed_zero3_enabled()


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """What an adapter's folder is written from, by where it stands in the model, whole and on the CPU.

    All processes must call it. Frozen weights of the base are left where they are.

    Args:
        model: With an adapter, sharded by FSDP2 or ZeRO-3, or not.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what is still whole from a forward may have been rounded for it
    state = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        if tensor.requires_grad or any(part in name for part in SAVED):
            state[name] = whole(tensor).detach().cpu()
    return state


def is_zero3(tensor: Tensor) -> bool:
    """Whether ZeRO-3 took this weight apart, by the mark that DeepSpeed itself goes by."""
    return hasattr(tensor, "ds_id")


def whole(tensor: Tensor) -> Tensor:
    """A weight that FSDP2 or ZeRO-3 took apart, put together again; any other as it is.

    All processes must ask for it.
    """
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    if is_zero3(tensor):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


@torch.no_grad()
def as_on_first_process(parameters: Iterable[Tensor], device: torch.device) -> None:
    """Write the first process's values into those of all others.

    A decomposition may come out with other signs on another machine, and FSDP2 takes each process's part of a weight
    from that process: without this the parts of one factor might be of different decompositions.

    Args:
        parameters: The same ones on every process, whole.
        device: What the process group sends between.
    """
    for parameter in parameters:
        value = parameter.detach().to(device).contiguous()
        dist.broadcast(value, src=0)
        parameter.copy_(value)


def refuse_missing_weights(layers: dict[str, LoraLayer], method: str) -> None:
    """A residual method decomposes whole weights, so it must start before they are taken apart.

    Raises:
        BALoraError: Naming a layer whose weight is in part elsewhere, or not loaded here.
    """
    for name, layer in layers.items():
        weight = next(layer.get_base_layer().parameters())
        if isinstance(weight, DTensor) or is_zero3(weight):
            raise BALoraError(
                f"method: {method} decomposes whole weights, and {name} is spread over processes (tensor parallelism, "
                "or sharded as it was loaded); let the trainer take the model apart, or use method='lora'"
            )
        if weight.is_meta:
            raise BALoraError(
                f"method: {method} decomposes weights, and {name} has none here yet; load them in every process "
                "(fsdp_cpu_ram_efficient_loading: false), or use method='lora'"
            )


def is_distributed() -> bool:
    """Whether a launcher started this process as one of several."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return not is_distributed() or os.environ["RANK"] == "0"


def is_sharded_launch() -> bool:
    """Whether the launcher asked for a model that is spread over the processes, rather than one in each."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return is_distributed() and any(os.environ.get(name, "false").lower() == "true" for name in names)


def barrier() -> None:
    """Until all processes are here."""
    if is_distributed():
        torch.distributed.barrier()


def from_main_process(make: Callable[[], Any]) -> Any:
    """What the first process makes, on all of them; it may not be made of what they do together.

    Args:
        make: Called there alone, or in the only process.
    """
    if not is_distributed():
        return make()
    made = [make() if is_main_process() else None]
    torch.distributed.broadcast_object_list(made, src=0)
    return made[0]
