"""Cache folder, content digests, atomic writes, and one clear error for a full disk."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.utils.distributed import is_main_process

#: A full disk, an exceeded quota, an exceeded file size limit.
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Return the given folder, else the environment's `BALORA_CACHE`, else `~/.cache/balora`."""
    return Path(folder or os.environ.get("BALORA_CACHE") or "~/.cache/balora").expanduser()


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the complete new one.

    In a distributed run only the main process writes. Missing folders are created.
    """
    if not is_main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file atomically: a concurrent reader sees the old file or the complete new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        pass
    save_file(tensors, file.name)
    os.replace(file.name, path)


def weights_digest(module: nn.Module, *settings: Any) -> str:
    """Return a hex digest of all of a module's weights and of settings of JSON types."""
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Create a directory atomically: `write` fills a temporary one, which is then renamed.

    A directory that already exists, or that another process created meanwhile, is kept.

    Raises:
        BALoraError: If the cache cannot be written.
    """
    if directory.is_dir():
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent)
    except OSError as error:
        raise BALoraError(
            f"cannot write to the cache directory {directory.parent} ({error.strerror}): "
            "set cache_dir or BALORA_CACHE to a writable one"
        ) from error
    with scratch:
        whole = Path(scratch.name) / directory.name
        whole.mkdir()
        write(whole)
        try:
            os.replace(whole, directory)
        except OSError:
            if not directory.is_dir():
                raise


@contextmanager
def report_full_disk(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager: turn the various errors of a full disk into one `BALoraError`.

    Raises:
        BALoraError: If a write failed for lack of space; it names the folder.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        free = shutil.disk_usage(folder).free / 2**20
        raise BALoraError(
            f"{folder}: the disk is full ({free:.1f} MB free); files written before are intact, so free some "
            "space and resume"
        ) from error


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL_DISK_ERRORS
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in FULL_DISK_ERRORS)
    # torch.save's messages when a write is incomplete.
    return "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)
