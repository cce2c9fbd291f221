"""One cell of a study: one method, one seed, from the pretrained model to its figures."""

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, set_seed
from transformers.trainer_callback import PrinterCallback

from balora.adapters.averaging import average_with_base
from balora.baselines import trainable_parameters
from balora.errors import BALoraError, Interrupted
from balora.model.base import BALoraModel
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run
from balora.report.results import run_from
from balora.study.measure import measure
from balora.study.model_and_data import prepare
from balora.study.progress import ProgressCallback
from balora.study.student import build_student, callbacks_of, save_student
from balora.study.trainers import build_trainer
from balora.training import InterruptCallback
from balora.training.checkpoints import UNFINISHED, last_whole_checkpoint
from balora.utils.files import full_disk_named, write_text

RESULT_FILE = "result.json"
HISTORY_FILE = "history.json"


def run_cell(recipe: Recipe, label: str, seed: int, directory: Path) -> Run:
    """Train the recipe's method with `seed`, or go on where it was interrupted, and measure what came of it.

    Writes the adapter, `history.json` (the trainer's log) and `result.json` into the folder. A cell whose result is
    there already is read, not run.

    Args:
        recipe: The settings, `method` among them.
        label: What tables call the method; `pretrained` measures the untouched model.
        seed: Of the head, the adapter's start, data order and dropout.
        directory: Folder of the cell.

    Raises:
        BALoraError: If something in the recipe or the data is wrong, the loss is not finite, or the disk is full.
        Interrupted: On Ctrl-C or SIGTERM, after saving.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with full_disk_named(directory):
        run = result_of(directory) if (directory / RESULT_FILE).exists() else _run(recipe, label, seed, directory)
    for left in (*directory.glob("checkpoint-*"), directory / UNFINISHED):
        shutil.rmtree(left, ignore_errors=True)
    return run


def _run(recipe: Recipe, label: str, seed: int, directory: Path) -> Run:
    prepared = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    checkpoint = last_whole_checkpoint(directory)
    set_seed(seed)
    model = build_student(prepared, label, seed, checkpoint)
    interrupt = InterruptCallback()
    callbacks = [interrupt, ProgressCallback(f"{label}, seed {seed}"), *callbacks_of(recipe.method)]
    trainer = build_trainer(prepared, model, seed, directory, callbacks)
    trainer.remove_callback(PrinterCallback)
    if label != PRETRAINED:
        _train(trainer, checkpoint)
    if interrupt.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(interrupt.received, trainer.state.global_step)
    peak_memory_mb = _peak_memory_mb()
    trained = trainable_parameters(model) if label != PRETRAINED else 0
    if recipe.wise_ft is not None and label != PRETRAINED:
        average_with_base(model, recipe.wise_ft)
    metrics, drift = measure(prepared, trainer, model, directory)
    if label != PRETRAINED:
        if isinstance(model, BALoraModel):
            model.drift = drift
        save_student(model, directory)
        prepared.tokenizer.save_pretrained(directory)
        write_text(directory / HISTORY_FILE, json.dumps(trainer.state.log_history, indent=1))
    run = Run(
        method=label,
        seed=seed,
        task=recipe.name,
        metrics={**metrics, **drift},
        train_seconds=trainer.train_seconds,
        peak_memory_mb=peak_memory_mb,
        trainable_parameters=trained,
    )
    write_text(directory / RESULT_FILE, json.dumps(vars(run), indent=1))
    return run


def _train(trainer: Trainer, checkpoint: str | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise BALoraError(
            "out of device memory: lower per_device_train_batch_size (raising gradient_accumulation_steps keeps the "
            "batch), set max_length, or set gradient_checkpointing: true"
        ) from error


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def result_of(directory: Path) -> Run:
    """The figures of a finished cell.

    Raises:
        BALoraError: If they were damaged.
    """
    path = directory / RESULT_FILE
    return run_from(_read(path, without_nan=True), str(path))


def history_of(directory: Path) -> list[dict[str, Any]]:
    """The log of a finished cell, empty for the untouched model.

    Raises:
        BALoraError: If it was damaged.
    """
    path = directory / HISTORY_FILE
    rows = _read(path) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and _is_logged(row) for row in rows):
        raise BALoraError(f"{path} is damaged: it is no log of a trainer; delete it, and the report goes without")
    return rows


def _is_logged(row: dict[str, Any]) -> bool:
    losses = [value for name, value in row.items() if "loss" in name]
    step = row.get("step")
    return (type(step) is int and 0 <= step < 2**53) and all(type(loss) in (int, float) for loss in losses)


def _read(path: Path, *, without_nan: bool = False) -> Any:
    """A JSON file, of which NaN is null where there must be none."""
    try:
        constants = {"parse_constant": lambda _: None} if without_nan else {}
        return json.loads(path.read_text(encoding="utf-8"), **constants)
    except (ValueError, RecursionError) as error:
        again = "delete it to have the run measured again" if path.name == RESULT_FILE else "delete it"
        raise BALoraError(f"{path} is damaged: {error}; {again}") from error
