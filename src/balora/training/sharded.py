"""What cannot be trained with weights spread over processes, said before training begins."""

from transformers import Trainer

from balora.config import SELORA, BALoraConfig
from balora.errors import BALoraError


def check_sharding(trainer: Trainer) -> None:
    """See that the objective of this trainer's model can be had as its weights are to be spread.

    Raises:
        BALoraError: If not.
    """
    config: BALoraConfig = trainer.model.balora_config
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        refuse_fsdp(config, plugin.fsdp_version)
    if trainer.is_deepspeed_enabled:
        refuse_deepspeed(config, trainer.accelerator.state.deepspeed_plugin.zero_stage)


def refuse_fsdp(config: BALoraConfig, version: int) -> None:
    """As `check_sharding`, of FSDP.

    Args:
        config: The model's.
        version: Accelerate's `fsdp_version`.
    """
    if version != 2:
        raise BALoraError("fsdp_version: the objective reads the head beside the model's layers; use 2")
    _refuse_terms(config, "FSDP")


def refuse_deepspeed(config: BALoraConfig, stage: int) -> None:
    """As `check_sharding`, of DeepSpeed.

    Args:
        config: The model's.
        stage: Of ZeRO; up to 2 the weights are whole in every process.
    """
    if stage < 3:
        return
    if config.residual:
        raise BALoraError(
            f"method: {config.method} keeps its teacher in frozen factors, which ZeRO-3 leaves out of what it gathers "
            "to save; use ZeRO-2, FSDP2, or method='lora'"
        )
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
