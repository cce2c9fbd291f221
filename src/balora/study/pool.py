"""Run a study's runs in processes, several at a time.

Each run has a process of its own, so that its peak memory is its own, a crash ends no other, and nothing leaks into
another run. It is forked from a server that imported the libraries and did nothing else: OpenMP's threads, which no
fork survives, were not started there. What one run tokenizes, later ones read from disk (`balora.study.shared_rows`).
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import torch

from balora.errors import BALoraError, Interrupted, RunFailed
from balora.study.plan import PlannedRun
from balora.study.run import train_and_measure
from balora.study.shared_rows import share_rows_in
from balora.study.shared_warnings import once_for_task, shown_warnings
from balora.study.terminal import quiet_libraries, report_errors, without_bars
from balora.utils.files import cache_folder

#: Imported once for all runs. bitsandbytes takes a second, and PEFT imports it with the first adapter.
PRELOADED = ["balora.study.pool", "trl", "peft.tuners.lora.bnb"]


def run_in_processes(
    planned: Sequence[PlannedRun],
    directory: Path,
    jobs: int,
    started: Callable[[PlannedRun], None],
    done: Callable[[PlannedRun], None],
) -> None:
    """Run the planned runs, at most `jobs` at a time.

    Args:
        planned: Settings, label and seed of each run.
        directory: The study's folder.
        jobs: Number of processes at a time.
        started: Called when a run begins.
        done: Called when a run has its result.

    Raises:
        BALoraError: If a run failed; no further one is started, and those in progress are waited for. `RunFailed` if
            a user's mistake was not the reason.
        Interrupted: On a signal, after the runs in progress are saved.
    """
    if not planned:
        return
    context = _context()
    waiting = list(planned)
    running: dict[int, tuple[BaseProcess, PlannedRun]] = {}  # by sentinel
    failed: list[tuple[PlannedRun, int]] = []  # with exit codes
    with _shared_folder() as shared, _forward_signals(running) as received:
        while running or (waiting and not failed and not received):
            while waiting and len(running) < jobs and not failed and not received:
                one = waiting.pop(0)
                started(one)
                inherited = (shared, shown_warnings(), dict(os.environ))
                process = context.Process(target=_run_in_child, args=(one, directory, jobs, *inherited))
                process.start()
                running[process.sentinel] = (process, one)
            for sentinel in connection.wait(list(running)):
                process, one = running.pop(sentinel)
                process.join()
                if process.exitcode == 0:
                    done(one)
                elif not received:
                    failed.append((one, process.exitcode))
    if received:
        raise Interrupted(received[0], 0)
    if failed:
        kind = BALoraError if all(status == BALoraError.status for _, status in failed) else RunFailed
        said = " and ".join(f"{one} {_failure(status)}" for one, status in failed)
        raise kind(f"{said}; finished runs are kept in {directory}")


def _failure(status: int) -> str:
    if status >= 0:
        return "failed (see above)"
    name = signal.Signals(-status).name
    return f"was killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")


@contextmanager
def _forward_signals(running: dict[int, tuple[BaseProcess, PlannedRun]]) -> Iterator[list[int]]:
    """Context manager: pass each signal on to every child once, since they are in process groups of their own."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process, _ in list(running.values()):
            os.kill(process.pid, number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _context() -> BaseContext:
    """Return a context whose children start with the libraries imported; with CUDA, which no fork survives, spawn."""
    # OpenMP's threads wait for one another by spinning, 300,000 rounds in GNU's: beside any other busy process they
    # keep each other off the cores, and a step can take tens of times as long. On a quiet machine this costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def start_importing() -> None:
    """Let the server of `run_in_processes` import the libraries now, beside other work of this process."""
    if _context().get_start_method() == "forkserver":
        from multiprocessing import forkserver  # absent where processes cannot be forked

        forkserver.ensure_running()


@contextmanager
def _shared_folder() -> Iterator[Path | None]:
    """Context manager: a temporary folder in the cache for what runs share; `None` if it cannot be made."""
    place = cache_folder() / "rows"
    try:
        place.mkdir(parents=True, exist_ok=True)
        folder = TemporaryDirectory(prefix="study-", dir=place, ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with folder as name:
        yield Path(name)


def _end_with_parent() -> None:
    """End this process with its parent, or it would write into the folder beside the study that resumes there."""
    study = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([study.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_child(
    one: PlannedRun,
    directory: Path,
    jobs: int,
    shared: Path | None,
    shown: frozenset[str],
    environment: dict[str, str],
) -> None:
    # The server forks with the environment of its own start, which may be that of an earlier study of this process.
    os.environ.clear()
    os.environ.update(environment)
    os.setpgrp()
    _end_with_parent()
    quiet_libraries()
    share_rows_in(shared)
    if jobs > 1:
        without_bars()
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        # More threads than cores spin against each other.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    with once_for_task(one.recipe.name, shared, shown):
        status = report_errors(lambda: train_and_measure(one.recipe, one.label, one.seed, directory / one.folder))
    sys.exit(status)
