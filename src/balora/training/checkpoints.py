"""Checkpoints: there whole or not at all, and known to be damaged before anything is read from them.

One is written in a folder beside the others, ended by a manifest of its files' sizes and digests, and moved to its
name when all of it is on the disk. Those of Transformers' own trainer have no manifest, and count as whole where the
trainer's state, which it writes last, can be read.
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
#: Where a checkpoint is written, and where one goes to be deleted; a name that uploads to the Hub leave out.
UNFINISHED = "_unfinished"
BLOCK = 2**22


def last_whole_checkpoint(folder: str | os.PathLike) -> str | None:
    """The checkpoint of the last step in a run's folder of which no file is damaged; `None` if there is none.

    Warns of each damaged one that it passes over, and says what is wrong with it.
    """
    checkpoints = [Path(path) for path in reversed(sort_checkpoints(str(folder)))]
    for number, checkpoint in enumerate(checkpoints):
        damage = damage_of(checkpoint)
        if damage is None:
            return str(checkpoint)
        rest = [path.name for path in checkpoints[number + 1 :]]
        instead = f"trying {rest[0]} instead" if rest else "there is none before it, so training begins again"
        warnings.warn(f"balora: {checkpoint} is damaged: {damage}; {instead}")
    return None


def refuse_damaged(checkpoint: str | os.PathLike) -> None:
    """Stop at a checkpoint that cannot be gone on from.

    Raises:
        BALoraError: If it is not there, or a file of it is damaged.
    """
    damage = damage_of(Path(checkpoint))
    if damage is not None:
        raise BALoraError(
            f"resume_from_checkpoint: {checkpoint} is damaged: {damage}; name another one, or use True for the last "
            "one that is whole"
        )


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, `None` if nothing is."""
    if not checkpoint.is_dir():
        return "there is no such folder"
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
            return f"{name} has {file.stat().st_size} bytes, and {size} were written"
        if _digest(file) != digest:
            return f"{name} holds other bytes than were written"
    return None


def seal(checkpoint: Path) -> None:
    """Bring every file of a checkpoint to the disk, and write its manifest."""
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


def put_in_place(unfinished: Path, checkpoint: Path) -> None:
    """Move a sealed checkpoint to its name, over one that has the name already."""
    if checkpoint.exists():
        discard(checkpoint)
    os.replace(unfinished, checkpoint)


def discard(checkpoint: Path) -> None:
    """Delete a checkpoint; killed meanwhile, it leaves nothing that looks like one."""
    aside = checkpoint.parent / UNFINISHED / f"old-{checkpoint.name}"
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def rotate(folder: Path, limit: int | None, kept: Collection[Path]) -> None:
    """Delete the checkpoints written first until at most `limit` are left, but none of those to keep.

    Args:
        folder: The run's.
        limit: `save_total_limit`; `None` or 0 deletes none.
        kept: The one just written, which is whole, and the best.
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
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
