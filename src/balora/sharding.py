"""Weights that are spread over processes (FSDP2, DeepSpeed's ZeRO-3): who holds a part, and what is whole again.

Such processes gather a layer's weights together whenever one runs it, so all of them must run the same passes.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled

from balora.errors import BALoraError

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
