"""Callbacks that any Transformers trainer can take: the schedules' clock, and a stop that loses nothing."""

import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.model.base import BALoraModel


class ScheduleCallback(TrainerCallback):
    """Tells a `BALoraModel` before each step how much of training is done."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: BALoraModel, **kwargs: Any
    ) -> None:
        """Set progress to the share of optimizer steps already taken."""
        model.set_progress(state.global_step / state.max_steps)


class InterruptCallback(TrainerCallback):
    """On Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second Ctrl-C stops at once, without saving.

    Attributes:
        received: The signal's number once one came, else `None`.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop, if any process was asked to, before the training's last step."""
        if args.world_size > 1:
            # A signal reaches them at different steps, and one that stopped alone would leave the others waiting.
            noted = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
            self.received = int(noted) or None
        if self.received is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
