"""balora: low-rank fine-tuning that keeps what the model knew.

    model = balora.get_balora_model(base, balora.BALoraConfig(method="pissa", r=16))

The rest is as with PEFT and Transformers. `balora.losses` holds the mathematics; TRL's trainer with our objective is
`balora.training.sft.BALoraSFTTrainer`.
"""

from balora.build import get_balora_model
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.model import BALoraModel, BALoraOutput
from balora.training import BALoraTrainer, ScheduleCallback

__all__ = [
    "BALoraConfig",
    "BALoraError",
    "BALoraModel",
    "BALoraOutput",
    "BALoraTrainer",
    "ScheduleCallback",
    "get_balora_model",
]
