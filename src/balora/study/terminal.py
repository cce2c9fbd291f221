"""The terminal: quiet libraries, one-line errors with an exit status, and a progress bar for training.

An error that is not the user's mistake is one line too: its type, its first line, and the file that holds the whole
traceback. `BALORA_TRACEBACK=1`, or `--traceback` on the command line, prints the traceback instead.
"""

import os
import platform
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import arrow_dataset
from rich.console import Console
from rich.errors import LiveError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balora.errors import BALoraError, Interrupted
from balora.report.page import versions
from balora.utils.distributed import is_main_process
from balora.utils.files import cache_folder
from balora.utils.progress import show_progress_with, showing

console = Console(stderr=True)

#: Environment variable that prints the traceback of an unexpected error.
TRACEBACK = "BALORA_TRACEBACK"
#: Characters of an unexpected error's first line that are printed; the log holds the rest.
LONGEST_CAUSE = 300
#: Seconds after which work is shown, and between two lines about it where there is no terminal.
SHOWN_AFTER, LINE_EVERY = 2.0, 30.0


def quiet_libraries() -> None:
    """Keep libraries' notices and progress bars off the terminal; errors, balora's warnings and progress stay."""
    show_progress_with(long_work if is_main_process() else None)
    arrow_dataset.hf_tqdm = RowsBar
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning)
    # PEFT looks for these names as folders or on the Hub whenever it saves.
    warnings.filterwarnings("ignore", r"Could not find a config file in (package:|\S+\.gguf )")
    if not is_main_process():
        warnings.filterwarnings("ignore")


def report_errors(action: Callable[[], object]) -> int:
    """Run an action, print an error in one line, and return the exit status: 2 for a user's mistake, else 1."""
    try:
        action()
    except BALoraError as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        _print_line(f"balora: error: {one_line(error)}")
        return error.status
    except Interrupted as stop:
        if is_main_process():
            console.print(f"balora: {stop}; run the same command to resume", markup=False, highlight=False)
        return 128 + stop.number
    except KeyboardInterrupt:
        console.print("balora: stopped before there was anything to save; run the same command to start again")
        return 128 + signal.SIGINT
    except Exception as error:
        _report_unexpected(error)
        return 1
    return 0


def _report_unexpected(error: Exception) -> None:
    """Print an unexpected error in one line, and write its traceback to a log file."""
    if os.environ.get(TRACEBACK):
        traceback.print_exception(error)
        return
    lines = str(error).strip().splitlines()
    said = one_line(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)
    if len(said) > LONGEST_CAUSE:
        said = f"{said[:LONGEST_CAUSE]}…"
    log = _write_log("".join(traceback.format_exception(error)))
    held = "set BALORA_TRACEBACK=1 for the traceback" if log is None else f"the traceback is in {log}"
    _print_line(f"balora: unexpected error: {said} ({held})")


def _write_log(text: str) -> Path | None:
    """Write a traceback with the command and versions to a file in the cache; `None` if no folder is writable."""
    command = shlex.join(["balora", *sys.argv[1:]])
    head = f"{command}\nPython {platform.python_version()}, {platform.platform()}\n{versions()}\n\n"
    for folder in (cache_folder() / "logs", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            handle, name = tempfile.mkstemp(prefix=f"balora-{stamp}-", suffix=".log", dir=folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(head + text)
        except OSError:
            continue
        return Path(name)
    return None


def _print_line(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def one_line(message: object) -> str:
    """Return a message in one line without control characters, since errors quote data and names of strangers."""
    line = " ".join(part for line in str(message).splitlines() if (part := line.strip()))
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def without_bars() -> None:
    """Print lines only from here on: the bars of parallel processes would overwrite one another."""
    global console
    console = Console(stderr=True, force_terminal=False)


@contextmanager
def long_work(description: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Context manager: show work that takes longer than `SHOWN_AFTER` seconds, with the time left if it is known.

    On a terminal a bar appears and is removed at the end; elsewhere a line is printed now and then.
    """
    began = lines_at = time.monotonic()
    done, draws = 0, console.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not draws)
    task = bar.add_task(description, total=total)
    shown = threading.Event()

    def show() -> None:
        nonlocal lines_at
        shown.set()
        lines_at = time.monotonic()
        if not draws:
            _print_line(f"{description} …" if not done else _line(description, done, total, lines_at - began))
            return
        with suppress(LiveError):  # older versions of rich show one bar at a time
            bar.start()

    def advance() -> None:
        nonlocal done, lines_at
        done += 1
        bar.update(task, completed=done)
        now = time.monotonic()
        if not draws and shown.is_set() and now - lines_at > LINE_EVERY:
            lines_at = now
            _print_line(_line(description, done, total, now - began))

    timer = threading.Timer(SHOWN_AFTER, show)
    timer.daemon = True
    timer.start()
    try:
        yield advance
    finally:
        timer.cancel()
        bar.stop()
        if shown.is_set() and not draws:
            _print_line(f"{description}: {_clock(time.monotonic() - began)} in all")


class RowsBar(datasets.utils.tqdm):
    """The bar of `datasets` over the rows that it maps, shown as balora shows long work."""

    def __init__(self, *args: Any, desc: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, desc=desc, **kwargs)
        self._advance: Callable[[], None] = lambda: None
        self._description = "preparing rows" if desc in (None, "Map") else f"{desc[:1].lower()}{desc[1:]}"

    def __enter__(self) -> "RowsBar":
        """Begin."""
        self._work = showing(self._description, self.total)
        self._advance = self._work.__enter__()
        return self

    def update(self, n: float | None = 1) -> None:
        """Report `n` more rows."""
        for _ in range(int(n or 0)):
            self._advance()

    def __exit__(self, *raised: Any) -> None:
        """End, and remove the bar."""
        self._work.__exit__(*raised)


def _line(description: str, done: int, total: int | None, seconds: float) -> str:
    if total is None:
        return f"{description}: {done} done in {_clock(seconds)}"
    return f"{description}: {done} of {total}, about {_clock(seconds / done * (total - done))} left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02}"


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
