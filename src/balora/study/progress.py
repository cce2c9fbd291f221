"""A progress bar with the time left, for whatever a Transformers trainer trains."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.utils.distributed import is_main_process

console = Console(stderr=True)


def without_bars() -> None:
    """Lines only from here on: the bars of processes that run side by side would overwrite one another."""
    global console
    console = Console(stderr=True, force_terminal=False)


class ProgressCallback(TrainerCallback):
    """Shows steps, loss and time left on a terminal; elsewhere one line when training begins and one when it ends."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._shown = is_main_process()
        self._draws = self._shown and console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._draws,
        )
        self._loss = ""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar, as far along as training is."""
        self._task = self._bar.add_task(self.description, total=state.max_steps, completed=state.global_step, loss="")
        self._bar.start()
        if self._shown and not self._draws:
            since = f" from step {state.global_step}" if state.global_step else ""
            console.print(f"{self.description}: {state.max_steps} steps{since}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance it."""
        self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest loss."""
        if logs and "loss" in logs:
            self._loss = f"loss {logs['loss']:.3f}"
            self._bar.update(self._task, loss=self._loss)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take it down."""
        self._bar.stop()
        if self._shown and not self._draws:
            console.print(f"{self.description}: step {state.global_step} of {state.max_steps}, {self._loss}")
