"""An audit from its settings to its folder, part by part."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from balora.adapters.loading import read_json
from balora.audit.kinds import CLASSIFIER, kind_of, label_names_of
from balora.audit.metrics import Metric, metric_of
from balora.audit.models import Audited, load_audited
from balora.audit.page import write_audit_page
from balora.audit.parts import Part
from balora.audit.plan import check_settings, plan
from balora.audit.settings import FILES, AuditSettings
from balora.data import expand_path
from balora.errors import BALoraError
from balora.report.page import versions
from balora.utils.files import write_text
from balora.utils.locks import LOCK_FILE, locked

RESULT_FILE, PAGE_FILE, PARTS = "audit.json", "audit.html", "parts"
#: Settings that every part depends on.
MODELS = ("model", "adapter", "dtype")


def audit(settings: AuditSettings, tell: Callable[[str], None] = lambda _: None) -> list[Metric]:
    """Measure what a fine-tune kept, lost and skewed compared with its base.

    Writes `audit.json` and `audit.html` into `output_dir`, and every part into `parts/` as soon as it is measured; an
    existing part with the same settings is read.

    Args:
        settings: Settings of the audit.
        tell: Called with the name of each part before it is measured.

    Raises:
        BALoraError: If a file, a setting or a model is wrong, or the folder holds something else.
    """
    check_settings(settings)
    directory = Path(settings.output_dir)
    with locked(directory):
        return _audit(settings, directory, tell)


def _audit(settings: AuditSettings, directory: Path, tell: Callable[[str], None]) -> list[Metric]:
    identity = _identity(settings)
    _check_folder(directory, identity)
    model, adapter = expand_path(settings.model), None if settings.adapter is None else expand_path(settings.adapter)
    kind = kind_of(model, adapter)
    names = label_names_of(model, adapter) if kind == CLASSIFIER else []
    parts = plan(settings, kind, names)
    metrics: list[Metric] = []
    audited: Audited | None = None
    notes: tuple[str, ...] = ()
    for part in parts:
        kept = _kept(directory, part, identity)
        if kept is None:
            if audited is None:
                tell("loading")
                audited = load_audited(model, adapter, dtype=settings.dtype, use_safetensors=settings.use_safetensors)
            tell(part.name)
            kept = {"notes": audited.notes, "figures": [metric.as_json() for metric in part.measure(audited)]}
            _keep(directory, part, identity, kept)
        notes = tuple(kept["notes"])
        metrics += [metric_of(entry) for entry in kept["figures"]]
    record = {
        "settings": asdict(settings),
        "kind": kind,
        "notes": notes,
        "versions": versions(),
        "figures": [metric.as_json() for metric in metrics],
    }
    write_text(directory / RESULT_FILE, json.dumps(record, indent=1, allow_nan=False))
    write_audit_page(directory / PAGE_FILE, settings=settings, kind=kind, metrics=metrics, notes=notes)
    return metrics


def _identity(settings: AuditSettings) -> dict[str, Any]:
    """Return the models, and the state of their files."""
    found: dict[str, Any] = {name: getattr(settings, name) for name in MODELS}
    for name in ("model", "adapter"):
        folder = Path(expand_path(getattr(settings, name) or ""))
        if getattr(settings, name) and folder.is_dir():
            found[f"a file of {name}"] = [
                state for state in _state(folder) if Path(state[0]).suffix in (".safetensors", ".bin", ".json")
            ]
    return found


def _check_folder(directory: Path, identity: dict[str, Any]) -> None:
    if all(path.name == LOCK_FILE for path in directory.iterdir()):
        return
    record = directory / PARTS
    if not record.is_dir():
        raise BALoraError(f"output_dir: {directory} holds files that are no audit; choose an empty folder")
    for path in record.glob("*.json"):
        there = _read(path)["identity"]
        if there != identity:
            what = next(name for name in identity | there if there.get(name, ...) != identity.get(name, ...))
            raise BALoraError(
                f"output_dir: {directory} holds an audit of other models, as {what} shows; choose another folder"
            )


def _depends(part: Part) -> dict[str, Any]:
    """Return the settings that a part's metrics depend on, and the state of the files that they name."""
    values = [value for name in FILES if (value := part.settings.get(name))]
    values += part.settings.get("benchmarks", {}).values()
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    paths = [expand_path(name) for name in names if isinstance(name, str)]
    return part.settings | {"files": [_state(Path(path)) for path in paths if os.path.exists(path)]}


def _state(path: Path) -> list[list[Any]]:
    """Return name, size and time of a file, or of the files in a folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _kept(directory: Path, part: Part, identity: dict[str, Any]) -> dict[str, Any] | None:
    path = directory / PARTS / f"{part.name}.json"
    if not path.exists():
        return None
    kept = _read(path)
    return kept if kept["settings"] == _depends(part) and kept["identity"] == identity else None


def _read(path: Path) -> dict[str, Any]:
    """Read a saved part.

    Raises:
        BALoraError: If the file is damaged.
    """
    kept = read_json(path)
    try:
        for entry in kept["figures"]:
            metric_of(entry)
        right = all(isinstance(kept[name], dict) for name in ("identity", "settings"))
        right = right and all(isinstance(note, str) for note in kept["notes"])
    except (KeyError, TypeError, ValueError, AttributeError):
        right = False
    if not right:
        raise BALoraError(f"{path} is damaged: it is no part of an audit; delete it to have it measured again")
    return kept


def _keep(directory: Path, part: Part, identity: dict[str, Any], found: dict[str, Any]) -> None:
    folder = directory / PARTS
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"identity": identity, "settings": _depends(part), **found}
    write_text(folder / f"{part.name}.json", json.dumps(entry, indent=1, allow_nan=False))
