"""Atomic checkpoints with a manifest, and detection of damaged ones before anything is loaded.

A checkpoint is written to a temporary folder, completed by a manifest of its files' sizes and digests, and renamed
once all of it is on disk. Checkpoints of Transformers' own trainer have no manifest, and count as intact if the
trainer state, which is written last, can be read.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from balora.errors import BALoraError

MANIFEST = "balora_manifest.json"
#: Temporary folder of checkpoints that are being written or deleted; uploads to the Hub exclude this name.
UNFINISHED = "_unfinished"
#: Memory limit: bytes of a file read at a time for its digest.
READ_BLOCK_BYTES = 2**22


def last_intact_checkpoint(folder: str | os.PathLike) -> str | None:
    """Return the latest intact checkpoint in a run's folder; `None` without one.

    Warns about each damaged one that it skips, with the reason.
    """
    checkpoints = [Path(path) for path in reversed(sort_checkpoints(str(folder)))]
    for number, checkpoint in enumerate(checkpoints):
        damage = find_damage(checkpoint)
        if damage is None:
            return str(checkpoint)
        rest = [path.name for path in checkpoints[number + 1 :]]
        instead = f"trying {rest[0]} instead" if rest else "there is no earlier one, so training starts over"
        warnings.warn(f"balora: {checkpoint} is damaged: {damage}; {instead}")
    return None


def check_checkpoint(checkpoint: str | os.PathLike) -> None:
    """Check that a checkpoint can be resumed from.

    Raises:
        BALoraError: If it does not exist, or a file is damaged.
    """
    damage = find_damage(Path(checkpoint))
    if damage is not None:
        raise BALoraError(
            f"resume_from_checkpoint: {checkpoint} is damaged: {damage}; name another one, or use True for the "
            "latest intact one"
        )


def find_damage(checkpoint: Path) -> str | None:
    """Return a description of the damage to a checkpoint's files; `None` if it is intact."""
    if not checkpoint.is_dir():
        return "the folder does not exist"
    try:
        if not (checkpoint / MANIFEST).exists():
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
            return None
        entries = json.loads((checkpoint / MANIFEST).read_text())["files"].items()
        written = {name: (entry["bytes"], entry["blake2b"]) for name, entry in entries}
    except FileNotFoundError:
        return f"{TRAINER_STATE_NAME} is missing, which is written last"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{TRAINER_STATE_NAME} or {MANIFEST} cannot be read ({error})"
    for name, (size, digest) in written.items():
        file = checkpoint / name
        if not os.path.isfile(file):
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if _digest(file) != digest:
            return f"{name} does not match its checksum"
    return None


def write_manifest(checkpoint: Path) -> None:
    """Write a checkpoint's manifest, and flush all of its files to disk."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    entries = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "blake2b": _digest(path)}
        for path in files
    }
    manifest = checkpoint / MANIFEST
    manifest.write_text(json.dumps({"files": entries}, indent=1))
    for path in (*files, manifest):
        with open(path, "r+b") as file:
            os.fsync(file.fileno())


def move_into_place(unfinished: Path, checkpoint: Path) -> None:
    """Rename a complete checkpoint to its final path, replacing an existing one."""
    if checkpoint.exists():
        discard(checkpoint)
    os.replace(unfinished, checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint; a kill in between leaves no folder that looks like one."""
    aside = checkpoint.parent / UNFINISHED / f"old-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def rotate(folder: Path, limit: int | None, kept: Collection[Path]) -> None:
    """Delete the oldest checkpoints until at most `limit` are left, except those to keep.

    Args:
        folder: The run's folder.
        limit: `save_total_limit`; `None` or 0 deletes none.
        kept: Checkpoints to keep: the one just written, and the best.
    """
    checkpoints = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir()]
    kept = {path.resolve() for path in kept}
    spare = [path for path in checkpoints if path.resolve() not in kept]
    spare.sort(key=lambda path: path.stat().st_mtime_ns)
    if limit is not None and limit > 0:
        for path in spare[: max(0, len(checkpoints) - limit)]:
            discard(path)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(READ_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
