"""Run untrusted programs in a sandbox: a single process without rights.

Each program gets a fresh interpreter (`jail`, never a fork of this process) with the standard library, an empty
environment, an empty folder, no standard input, and limits on time, memory and output. `isolation` lists what the
kernel refuses on this machine. Seccomp is required; the rest is added if the machine permits it.

This protects against a model's mistakes and malice. Against an attacker who knows a kernel vulnerability, use a
virtual machine.
"""

import contextlib
import functools
import math
import os
import secrets
import selectors
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from balora.errors import BALoraError

#: A program is killed after this many bytes of standard output and error together.
OUTPUT_BYTES = 1 << 20
#: Layers beyond seccomp, tried in every run.
LAYERS = ("namespaces", "landlock")

_JAIL = str(Path(__file__).parent / "jail" / "__main__.py")


@dataclass(frozen=True)
class Outcome:
    """The outcome of a program.

    Attributes:
        ending: `finished` if its last line was executed; `exited` if it ended before, by an exception, an exit with
            any status, or a limit on memory or CPU time; `timeout` or `output` if it was killed for running too long
            or writing too much.
        output: Standard output and error together; after an exception they end with its traceback.
        seconds: Wall-clock time, including the interpreter's start.
        isolation: As from `isolation`, for this run.
    """

    ending: Literal["finished", "exited", "timeout", "output"]
    output: str
    seconds: float
    isolation: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """True if the program reached its end."""
        return self.ending == "finished"


def run_program(source: str, *, timeout_s: float, memory_mb: int, confirm_run_unsafe_code: bool = False) -> Outcome:
    """Run an untrusted Python program in the sandbox.

    It can import the standard library only. It is a module named `program`, so code under `if __name__ == "__main__"`
    does not run. Hashes are not randomized: sets have the same order in every run.

    Args:
        source: The program.
        timeout_s: Wall-clock seconds; CPU time is limited to the next whole second.
        memory_mb: Address space in MiB; the interpreter itself takes about 30.
        confirm_run_unsafe_code: Must be True, to confirm that untrusted code may run.

    Returns:
        The outcome. The program and all files it wrote are deleted.

    Raises:
        BALoraError: If not confirmed, or if the program cannot be confined on this machine.
    """
    if not confirm_run_unsafe_code:
        raise BALoraError(
            "generated code is only run on request: read balora.evaluation.code.isolation() for this machine, then "
            "pass confirm_run_unsafe_code=True"
        )
    if sys.platform != "linux":
        raise BALoraError("generated code can be confined on Linux only; run the evaluation there")
    token = secrets.token_hex(16).encode()
    reports, report = os.pipe()
    arguments = [str(report), str(memory_mb), str(math.ceil(timeout_s)), ",".join(LAYERS)]
    with (
        tempfile.TemporaryFile() as program,
        tempfile.TemporaryDirectory(prefix="balora-program-") as scratch,
        open(reports, "rb", buffering=0) as told,
    ):
        program.write(token + b"\n" + source.encode(errors="replace"))
        program.seek(0)
        start = time.monotonic()
        try:
            process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-X", "utf8", _JAIL, *arguments],
                stdin=program,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[report],
                cwd=scratch,
                env={"PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
        finally:
            os.close(report)
        stopped, output = _watch(process, start + timeout_s)
        seconds = time.monotonic() - start
        # The whole report is in the pipe, whose capacity this is; a fork of this process may keep its other end open.
        os.set_blocking(reports, False)
        held, _, rest = (told.read(1 << 16) or b"").partition(b"\n\n")
    text = output.decode(errors="replace")
    if not held and stopped is None:
        raise BALoraError(f"no program can be run here: the interpreter that confines it failed with {text[-500:]!r}")
    ending = "finished" if secrets.compare_digest(rest, token) else stopped or "exited"
    return Outcome(ending, text, seconds, tuple(held.decode().splitlines()))


@functools.cache
def isolation() -> list[str]:
    """Return the guarantees for programs on this machine, each with its mechanism, by running an empty program.

    Always: one process, no execution of files, no access to other processes, no socket, limits on memory, CPU time and
    open files. With Landlock (Linux 6.2): no file is readable except the interpreter's and the system libraries';
    otherwise the program can read what its user can. With Landlock and namespaces: it can write in its own folder,
    16 MiB in memory; otherwise it can write no file.

    Raises:
        BALoraError: If programs cannot be confined on this machine.
    """
    return list(run_program("", timeout_s=60, memory_mb=256, confirm_run_unsafe_code=True).isolation)


def _watch(process: subprocess.Popen, deadline: float) -> tuple[Literal["timeout", "output"] | None, bytes]:
    """Collect output until the process has ended or is killed."""
    output = b""
    # Kill it in every case; it has no children (seccomp), so no process is left.
    with process, contextlib.ExitStack() as ending, selectors.DefaultSelector() as selector:
        ending.callback(process.kill)
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(process.stdout.fileno(), 1 << 16)
            output += piece
            if len(output) > OUTPUT_BYTES:
                return "output", output
            if not piece:  # ended, or closed its output and is still running
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break
                return None, output
    return "timeout", output
