"""The terminal: quiet libraries, one-line errors with an exit status, and a progress bar for training."""

import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

import datasets
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.errors import BALoraError, Interrupted
from balora.utils.distributed import is_main_process

console = Console(stderr=True)


def quiet_libraries() -> None:
    """Keep libraries' notices and progress bars off the terminal; errors and balora's warnings stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if not is_main_process():
        warnings.filterwarnings("ignore")


def report_errors(action: Callable[[], object]) -> int:
    """Run an action, print a user's mistake in one line, and return the exit status."""
    try:
        action()
    except BALoraError as error:
        console.print(f"balora: error: {one_line(error)}", markup=False, highlight=False, soft_wrap=True)
        return 2
    except Interrupted as stop:
        if is_main_process():
            console.print(f"balora: {stop}; run the same command to resume", markup=False, highlight=False)
        return 128 + stop.number
    except KeyboardInterrupt:
        console.print("balora: stopped before there was anything to save; run the same command to start again")
        return 128 + signal.SIGINT
    return 0


def one_line(message: object) -> str:
    """Return a message in one line without control characters, since errors quote data and names of strangers."""
    line = " ".join(part for line in str(message).splitlines() if (part := line.strip()))
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def without_bars() -> None:
    """Print lines only from here on: the bars of parallel processes would overwrite one another."""
    global console
    console = Console(stderr=True, force_terminal=False)


class ProgressCallback(TrainerCallback):
    """Show steps, loss and time left on a terminal; elsewhere print one line when training begins and ends."""

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
        """Show the bar at the current step."""
        self._task = self._bar.add_task(self.description, total=state.max_steps, completed=state.global_step, loss="")
        self._bar.start()
        if self._shown and not self._draws:
            since = f" from step {state.global_step}" if state.global_step else ""
            console.print(f"{self.description}: {state.max_steps} steps{since}")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
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
        """Remove the bar, or print the last step and loss."""
        self._bar.stop()
        if self._shown and not self._draws:
            console.print(f"{self.description}: step {state.global_step} of {state.max_steps}, {self._loss}")
