"""Configuration of a model: PEFT's `LoraConfig` plus initialization and regularizers, each setting declared once."""

from balora.config.balora_config import BALoraConfig, as_balora_config, check_task_names
from balora.config.initialization import FROM_DATA, FROZEN_A, METHODS, RESIDUAL, SELORA, Initialization
from balora.config.published import PRESETS, PUBLISHED
from balora.config.quantization import four_bit_settings
from balora.config.regularizers import Regularizers, Schedule

__all__ = [
    "FROM_DATA",
    "FROZEN_A",
    "METHODS",
    "PRESETS",
    "PUBLISHED",
    "RESIDUAL",
    "SELORA",
    "BALoraConfig",
    "Initialization",
    "Regularizers",
    "Schedule",
    "as_balora_config",
    "check_task_names",
    "four_bit_settings",
]
