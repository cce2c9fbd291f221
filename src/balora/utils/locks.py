"""A lock on an output folder, so that two commands never write to it at once."""

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from balora.errors import BALoraError

#: File that holds the lock, and says who took it; it is deleted at the end, and a killed process leaves it unlocked.
LOCK_FILE = ".balora.lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Context manager: create a folder and lock it; an empty folder that it created is removed at the end.

    Raises:
        BALoraError: If the folder cannot be created or written to, or another process holds the lock.
    """
    make_folder(directory)
    file = directory / LOCK_FILE
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BALoraError(
            f"output_dir: {directory} is in use by {_holder(file)}; wait for it to end, or choose another --output_dir"
        ) from error
    except OSError as error:
        raise BALoraError(
            f"output_dir: cannot write to {directory} ({_reason(error)}); name another folder"
        ) from error
    try:
        # A full disk is reported by what has to be written.
        with suppress(OSError):
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}: {command}\n", "utf-8")
        yield
    finally:
        # Deleted before it is released, so that no other process takes a lock on a deleted file.
        with suppress(OSError):
            file.unlink()
        lock.release()
        with suppress(OSError):
            directory.rmdir()  # fails unless the folder is empty


def make_folder(directory: Path) -> None:
    """Create an output folder with its parents, unless it exists.

    Raises:
        BALoraError: If that is not possible.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise BALoraError(f"output_dir: {directory} is a file; name a folder") from error
    except (OSError, ValueError) as error:
        raise BALoraError(f"output_dir: cannot create {directory} ({_reason(error)}); name another folder") from error


def _holder(file: Path) -> str:
    try:
        said = " ".join(file.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        said = ""
    return said[:200] or "another process"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
