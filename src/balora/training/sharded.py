"""Preparation of a model for sharding by FSDP or DeepSpeed, and checks that its objective supports it."""

from dataclasses import replace

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer

from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.utils.distributed import broadcast_parameters


def prepare_sharding(trainer: Trainer) -> None:
    """Prepare a trainer for sharding: equal adapters on all processes, losses and reductions in float32.

    Raises:
        BALoraError: If the model's objective cannot be computed on weights sharded so.
    """
    config: BALoraConfig = trainer.model.balora_config
    if trainer.is_fsdp_enabled and not isinstance(trainer.model, FSDPModule):
        plugin = trainer.accelerator.state.fsdp_plugin
        check_fsdp(config, plugin.fsdp_version)
        # With cpu_ram_efficient_loading Accelerate already broadcasts all weights of the first process.
        if not plugin.cpu_ram_efficient_loading:
            adapter = [p for name, p in trainer.model.named_parameters() if "lora_" in name or p.requires_grad]
            broadcast_parameters(adapter, trainer.args.device)
        if plugin.mixed_precision_policy is not None:
            # By default Accelerate rounds the loss and reduces the adapter's gradients in half precision.
            exact = {"output_dtype": None, "reduce_dtype": torch.float32}
            plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, **exact)
    if trainer.is_deepspeed_enabled:
        check_deepspeed(config, trainer.accelerator.state.deepspeed_plugin.zero_stage)


def check_fsdp(config: BALoraConfig, version: int) -> None:
    """Check that the objective can be computed under FSDP.

    Args:
        config: The model's configuration.
        version: Accelerate's `fsdp_version`.

    Raises:
        BALoraError: If it cannot; it names the setting.
    """
    if version != 2:
        raise BALoraError(
            "fsdp_version: the objective reads the head outside the model's forward, which FSDP1 cannot; use 2"
        )
    _check_terms(config, "FSDP")


def check_deepspeed(config: BALoraConfig, stage: int) -> None:
    """Check that the objective can be computed under DeepSpeed.

    Args:
        config: The model's configuration.
        stage: ZeRO stage; up to 2 every process has all weights.

    Raises:
        BALoraError: If it cannot; it names the setting.
    """
    if stage == 3:
        _check_terms(config, "ZeRO-3")


def _check_terms(config: BALoraConfig, how: str) -> None:
    """Check for terms that read adapter weights, which are gathered only while their layer runs."""
    if config.alignment_weight:
        raise BALoraError(f"alignment_weight: {how} shards the adapters that it compares; use DDP, or ZeRO-2, or 0")
    if config.gated and config.semantic_weight:
        raise BALoraError(f"semantic_weight: {how} shards the factors that it reads; use DDP, or ZeRO-2, or 0")
