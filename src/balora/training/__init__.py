"""Trainers: Transformers' and TRL's, made to feed the objective and to log its parts.

`BALoraSFTTrainer` is imported from `balora.training.sft`, so that TRL is needed only by who uses it.
"""

from balora.training.callbacks import InterruptCallback, ScheduleCallback
from balora.training.trainer import BALoraTrainer

__all__ = ["BALoraTrainer", "InterruptCallback", "ScheduleCallback"]
