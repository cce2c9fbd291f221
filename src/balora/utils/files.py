"""Where what is made once is kept, and how it is written: whole or not at all."""

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

#: Of a disk that is full, of a user's share of it, of a limit on a file's size.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder given, else the environment's `BALORA_CACHE`, else `~/.cache/balora`."""
    return Path(folder or os.environ.get("BALORA_CACHE") or "~/.cache/balora").expanduser()


def write_jsonl(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the whole new one.

    Of several processes that train together, only the main one writes. Missing folders are made.
    """
    if not is_main_process():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file all at once, so that a process that reads meanwhile sees it before or after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        pass
    save_file(tensors, file.name)
    os.replace(file.name, path)


def digest_of(module: nn.Module, *settings: Any) -> str:
    """Hex digits that name a module's weights, every one of them, and settings of JSON types."""
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=16)
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_whole(directory: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory beside this one and move it here; if another process was first, keep its own.

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
            "set cache_dir or BALORA_CACHE to one that can be written"
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
def full_disk_named(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within, a disk that is full is one clear error.

    Raises:
        BALoraError: If something could not be written for want of space, naming the folder.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_full(error):
            raise
        free = shutil.disk_usage(folder).free / 2**20
        raise BALoraError(
            f"{folder}: no room to write on, {free:.1f} MB are free there; what was finished before is whole, so make "
            "room and begin again from it"
        ) from error


def _is_full(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    if isinstance(error, SafetensorError):
        return any(f"os error {number})" in str(error) for number in FULL)
    # What torch.save says when a write falls short.
    return "PytorchStreamWriter" in str(error) or "unexpected pos" in str(error)
