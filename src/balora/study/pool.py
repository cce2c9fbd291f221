"""Cells in processes of their own, some at a time.

A fresh process a cell, so that its peak memory is its own and nothing leaks into the next.
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
from types import FrameType

import torch

from balora.errors import BALoraError, Interrupted
from balora.study.plan import Cell
from balora.study.progress import without_bars
from balora.study.run import run_cell
from balora.study.terminal import quiet_libraries, report_errors


def run_in_processes(
    cells: Sequence[Cell], directory: Path, jobs: int, started: Callable[[Cell], None], done: Callable[[Cell], None]
) -> None:
    """Run the cells, at most `jobs` at a time.

    Args:
        cells: What to run.
        directory: The study's folder.
        jobs: Processes at a time.
        started: Called as a cell begins.
        done: Called as a cell has its result.

    Raises:
        BALoraError: If a cell failed; the others that were running are waited for, and no more are begun.
        Interrupted: On a signal, after the running cells saved.
    """
    context = _context()
    waiting = list(cells)
    running: dict[int, tuple[BaseProcess, Cell]] = {}  # by sentinel
    failed: list[Cell] = []
    with _forwarding(running) as received:
        while running or (waiting and not failed and not received):
            while waiting and len(running) < jobs and not failed and not received:
                cell = waiting.pop(0)
                started(cell)
                process = context.Process(target=_cell_process, args=(cell, directory, jobs, dict(os.environ)))
                process.start()
                running[process.sentinel] = (process, cell)
            for sentinel in connection.wait(list(running)):
                process, cell = running.pop(sentinel)
                process.join()
                if process.exitcode == 0:
                    done(cell)
                elif not received:
                    failed.append(cell)
    if received:
        raise Interrupted(received[0], 0)
    if failed:
        raise BALoraError(
            f"{' and '.join(map(str, failed))} failed (see above); finished runs are kept in {directory}"
        )


@contextmanager
def _forwarding(running: dict[int, tuple[BaseProcess, Cell]]) -> Iterator[list[int]]:
    """Within, a signal is passed on to each child once, whoever sent it: they are in process groups of their own."""
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
    """Children of a server that has imported the libraries already; CUDA, where there is some, survives no fork."""
    # OpenMP's threads wait for one another by spinning, 300,000 rounds in GNU's: beside any other busy process they
    # keep each other off the cores, and a step can take tens of times as long. On a quiet machine this costs nothing.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["balora.study.pool", "trl"])
    return context


def _end_with_parent() -> None:
    """A study that was killed leaves no run behind, which would go on writing beside the next that has its folder."""
    study = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([study.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _cell_process(cell: Cell, directory: Path, jobs: int, environment: dict[str, str]) -> None:
    # The server forks with the environment of its own start, which may be that of an earlier study of this process.
    os.environ.clear()
    os.environ.update(environment)
    os.setpgrp()
    _end_with_parent()
    quiet_libraries()
    if jobs > 1:
        without_bars()
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        # More threads than cores spin against each other.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    sys.exit(report_errors(lambda: run_cell(cell.recipe, cell.label, cell.seed, directory / cell.folder)))
