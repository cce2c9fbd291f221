"""Configuration of a model: PEFT's `LoraConfig` plus initialization and regularizers, each setting declared once."""

from balora.config.balora_config import BALoraConfig, as_balora_config, check_task_names
from balora.config.initialization import FROM_DATA, FROZEN_A, INITIALIZATIONS, RESIDUAL, SELORA, Initialization
from balora.config.methods import METHODS, Method, check_method, find_method, renamed
from balora.config.published import PRESETS, PUBLISHED
from balora.config.quantization import four_bit_settings
from balora.config.regularizers import Regularizers, Schedule

__all__ = [
    "FROM_DATA",
    "FROZEN_A",
    "INITIALIZATIONS",
    "METHODS",
    "PRESETS",
    "PUBLISHED",
    "RESIDUAL",
    "SELORA",
    "BALoraConfig",
    "Initialization",
    "Method",
    "Regularizers",
    "Schedule",
    "as_balora_config",
    "check_method",
    "check_task_names",
    "find_method",
    "four_bit_settings",
    "renamed",
]
