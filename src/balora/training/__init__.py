"""Trainers of Transformers and TRL that feed the objective and log its components.

`BALoraSFTTrainer` is imported from `balora.training.sft`, so that TRL is needed only for it.
"""

from balora.training.callbacks import InterruptCallback, ScheduleCallback
from balora.training.trainer import BALoraTrainer

__all__ = ["BALoraTrainer", "InterruptCallback", "ScheduleCallback"]
