"""Programs that nobody has read, run where they can do little: one process without rights, then nothing.

Each program gets a fresh interpreter (`jail`, never a fork of ours) with the standard library, an empty environment,
an empty folder, no standard input, and limits on time, memory and output. What the kernel then refuses it is told by
`isolation`. Seccomp is required; the rest strengthens it where the machine permits.

This holds against a model's mistakes and mischief. Against an attacker with a flaw of the kernel in hand, use a
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

#: A program that writes more than this many bytes, standard output and error together, is ended.
OUTPUT_BYTES = 1 << 20
#: What strengthens seccomp, tried in every run.
LAYERS = ("namespaces", "landlock")

_JAIL = str(Path(__file__).parent / "jail" / "__main__.py")


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        ending: `finished` if its last line was reached and done; `exited` if it ended before, by an exception, an
            exit of whatever status, or a limit on memory or CPU time; `timeout` and `output` if it was ended for
            running or writing too long.
        output: Standard output and error together; after an exception its traceback ends them.
        seconds: Wall-clock time, the interpreter's start included.
        isolation: What `isolation` says, of this run.
    """

    ending: Literal["finished", "exited", "timeout", "output"]
    output: str
    seconds: float
    isolation: tuple[str, ...]

    @property
    def finished(self) -> bool:
        """Whether the program reached its end."""
        return self.ending == "finished"


def run_program(source: str, *, timeout_s: float, memory_mb: int, confirm_run_unsafe_code: bool = False) -> Outcome:
    """Run a Python program that nobody has read.

    It finds the standard library and no other package. It is a module named `program`, so that what stands under
    `if __name__ == "__main__"` does not run. Hashes are not randomized: sets keep their order from run to run.

    Args:
        source: The program.
        timeout_s: Wall-clock seconds; CPU time is limited to the next whole second.
        memory_mb: Address space in MiB, of which the interpreter itself takes about 30.
        confirm_run_unsafe_code: Whoever calls says that they want code run that nobody has read.

    Returns:
        Its outcome. The program, and whatever it wrote, are gone.

    Raises:
        BALoraError: Unless confirmed, or if the program cannot be confined on this machine.
    """
    if not confirm_run_unsafe_code:
        raise BALoraError(
            "generated code is only run on request: read what balora.evaluation.code.isolation() says of this "
            "machine, then pass confirm_run_unsafe_code=True"
        )
    if sys.platform != "linux":
        raise BALoraError("generated code can be confined on Linux alone: judge it there")
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
        # All that was told is in the pipe, which holds no more than this; its other end may live on in a fork of ours.
        os.set_blocking(reports, False)
        held, _, rest = (told.read(1 << 16) or b"").partition(b"\n\n")
    text = output.decode(errors="replace")
    if not held and stopped is None:
        raise BALoraError(f"no program can be run here: the interpreter that confines it failed with {text[-500:]!r}")
    ending = "finished" if secrets.compare_digest(rest, token) else stopped or "exited"
    return Outcome(ending, text, seconds, tuple(held.decode().splitlines()))


@functools.cache
def isolation() -> list[str]:
    """What holds for a program run on this machine, by what keeps it; found out by running an empty one.

    Always: one process, no other file run, no other process reached, no socket, limits on memory, CPU time and open
    files. Where Landlock is (Linux 6.2): no file read but the interpreter's and the system libraries'; otherwise the
    program may read what its user may. With Landlock and namespaces: it may write in its own folder, 16 MiB that are
    never on disk; otherwise it may write no file.

    Raises:
        BALoraError: If programs cannot be confined on this machine.
    """
    return list(run_program("", timeout_s=60, memory_mb=256, confirm_run_unsafe_code=True).isolation)


def _watch(process: subprocess.Popen, deadline: float) -> tuple[Literal["timeout", "output"] | None, bytes]:
    """Collect output until the process has ended, by itself or by us."""
    output = b""
    # Whatever happens, it ends here; it is alone (seccomp), so nothing is left behind it.
    with process, contextlib.ExitStack() as ending, selectors.DefaultSelector() as selector:
        ending.callback(process.kill)
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            piece = os.read(process.stdout.fileno(), 1 << 16)
            output += piece
            if len(output) > OUTPUT_BYTES:
                return "output", output
            if not piece:  # ended, or closed its output and goes on
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    break
                return None, output
    return "timeout", output
