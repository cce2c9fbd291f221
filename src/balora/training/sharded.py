"""Before a trainer spreads the weights over processes: what cannot be trained so is refused, the rest made ready."""

from dataclasses import replace

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from balora.config import SELORA, BALoraConfig
from balora.errors import BALoraError
from balora.utils.distributed import as_on_first_process


def prepare_sharding(trainer: Trainer) -> None:
    """Make ready what this trainer is about to spread: one adapter for all processes, losses in single precision.

    Raises:
        BALoraError: If the model's objective cannot be had of weights that are spread so.
    """
    config: BALoraConfig = trainer.model.balora_config
    if trainer.is_fsdp_enabled and not isinstance(trainer.model, FSDPModule):
        plugin = trainer.accelerator.state.fsdp_plugin
        refuse_fsdp(config, plugin.fsdp_version)
        # With cpu_ram_efficient_loading Accelerate hands out the first process's weights, all of them.
        if not plugin.cpu_ram_efficient_loading:
            adapter = [p for name, p in trainer.model.named_parameters() if "lora_" in name or p.requires_grad]
            as_on_first_process(adapter, trainer.args.device)
        if plugin.mixed_precision_policy is not None:
            # Accelerate would round the loss, and sum the adapter's few gradients, in half precision.
            exact = {"output_dtype": None, "reduce_dtype": torch.float32}
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **exact)
    if trainer.is_deepspeed_enabled:
        refuse_deepspeed(config, trainer.accelerator.state.deepspeed_plugin.zero_stage)


def refuse_fsdp(config: BALoraConfig, version: int) -> None:
    """See that the objective can be had under FSDP.

    Args:
        config: The model's.
        version: Accelerate's `fsdp_version`.

    Raises:
        BALoraError: If not, naming the setting.
    """
    if version != 2:
        raise BALoraError("fsdp_version: the objective reads the head beside the model's layers; use 2")
    _refuse_terms(config, "FSDP")


def refuse_deepspeed(config: BALoraConfig, stage: int) -> None:
    """See that the objective can be had under DeepSpeed.

    Args:
        config: The model's.
        stage: Of ZeRO; up to 2 the weights are whole in every process.

    Raises:
        BALoraError: If not, naming the setting.
    """
    if stage == 3:
        _refuse_terms(config, "ZeRO-3")


def _refuse_terms(config: BALoraConfig, how: str) -> None:
    """Terms of the adapters' weights themselves, which are whole only while their layer runs."""
    if config.alignment_weight:
        raise BALoraError(
            f"alignment_weight: {how} spreads the adapters that it compares over processes; use DDP, or ZeRO-2, or 0"
        )
    if config.method == SELORA and config.semantic_weight:
        raise BALoraError(
            f"semantic_weight: {how} spreads the factors that it reads over processes; use DDP, or ZeRO-2, or 0"
        )
