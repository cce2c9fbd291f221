"""balora: low-rank fine-tuning that keeps what the model knew.

    model = balora.get_balora_model(base, balora.BALoraConfig(method="ba-lora", r=16))

Everything else is as in PEFT and Transformers. `balora.losses` holds the mathematics; TRL's trainer with balora's
objective is `balora.training.sft.BALoraSFTTrainer`.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balora.config import BALoraConfig
    from balora.errors import BALoraError
    from balora.model import BALoraModel, BALoraOutput, get_balora_model
    from balora.training import BALoraTrainer, ScheduleCallback

# Where each public name is defined. They are imported on first use: torch alone takes seconds to import, which
# `balora --help` and the parsing of a command line need not wait for.
_MODULES = {
    "BALoraConfig": "balora.config",
    "BALoraError": "balora.errors",
    "BALoraModel": "balora.model",
    "BALoraOutput": "balora.model",
    "BALoraTrainer": "balora.training",
    "ScheduleCallback": "balora.training",
    "get_balora_model": "balora.model",
}

__all__ = [
    "BALoraConfig",
    "BALoraError",
    "BALoraModel",
    "BALoraOutput",
    "BALoraTrainer",
    "ScheduleCallback",
    "get_balora_model",
]

# PEFT imports bitsandbytes wherever it is installed, which then warns of a kernel package that 4-bit layers on a CPU
# could use. Nobody has asked for such layers yet, and the package would be downloaded from the Hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
