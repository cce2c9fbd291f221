"""Callbacks for any Transformers trainer: progress for the schedules, and interruption with a checkpoint."""

import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.errors import BALoraError
from balora.model.base import BALoraModel


class ScheduleCallback(TrainerCallback):
    """Sets a `BALoraModel`'s training progress before each step."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: BALoraModel, **kwargs: Any
    ) -> None:
        """Check that a step reads anchors.

        Raises:
            BALoraError: If training ends before the first one.
        """
        config = model.balora_config
        if config.anchor_weight and config.anchor_every > state.max_steps:
            raise BALoraError(
                f"anchor_every: {config.anchor_every} is more than the {state.max_steps} steps of training, so none "
                "would read anchors; use at most that"
            )

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: BALoraModel, **kwargs: Any
    ) -> None:
        """Set progress to the fraction of optimizer steps already taken, and their number."""
        model.set_progress(state.global_step / state.max_steps, state.global_step)


class InterruptCallback(TrainerCallback):
    """Handler of Ctrl-C and SIGTERM: finish the step, save a checkpoint, stop. A second signal stops at once.

    Attributes:
        received: Number of the received signal; `None` before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Install the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Save and stop if any process received a signal, unless this was the last step."""
        if args.world_size > 1:
            # A signal reaches processes at different steps, and they must stop together or the others would hang.
            noted = torch.tensor(self.received or 0, device=args.device)
            torch.distributed.all_reduce(noted, torch.distributed.ReduceOp.MAX)
            self.received = int(noted) or None
        if self.received is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
