"""One run: train one method with one seed, from the pretrained model to its metrics."""

import json
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, set_seed
from transformers.trainer_callback import PrinterCallback

from balora.adapters.after_training import change_after_training
from balora.adapters.averaging import average_with_base
from balora.errors import BALoraError, Interrupted, WorkerDone
from balora.model.base import BALoraModel
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run
from balora.report.results import run_from
from balora.study.measures.measure import measure, nothing_lost
from balora.study.prepare import prepare
from balora.study.rewriting import with_rewritten_answers
from balora.study.student import build_student, method_callbacks, save_generation_settings, save_student
from balora.study.terminal import ProgressCallback
from balora.study.trainers import build_trainer, check_steps, evaluated_on, row_counts
from balora.training import InterruptCallback
from balora.training.checkpoints import UNFINISHED, last_intact_checkpoint
from balora.utils.distributed import is_main_process
from balora.utils.files import report_full_disk, write_text
from balora.utils.modules import trainable_parameters

RESULT_FILE = "result.json"
HISTORY_FILE = "history.json"


def train_and_measure(recipe: Recipe, label: str, seed: int, directory: Path) -> Run:
    """Train the recipe's method with one seed, or resume it, and measure the result.

    Writes the adapter, `history.json` (the trainer's log) and `result.json` into the folder. If the folder already has
    a result, it is read and nothing runs.

    Args:
        recipe: The settings, `method` among them.
        label: The method's name in tables; `pretrained` measures the untouched model.
        seed: Seed of the head, the adapter's initialization, data order and dropout.
        directory: Folder of the run.

    Raises:
        BALoraError: If something in the recipe or the data is wrong, the loss is not finite, or the disk is full.
        Interrupted: On Ctrl-C or SIGTERM, after saving.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with report_full_disk(directory):
        run = read_result(directory) if (directory / RESULT_FILE).exists() else _run(recipe, label, seed, directory)
    for checkpoint in (*directory.glob("checkpoint-*"), directory / UNFINISHED):
        shutil.rmtree(checkpoint, ignore_errors=True)
    return run


def _run(recipe: Recipe, label: str, seed: int, directory: Path) -> Run:
    prepared = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    if label != PRETRAINED:
        check_steps(prepared)
        if recipe.rewrite_answers:
            prepared = with_rewritten_answers(prepared, directory)
    checkpoint = last_intact_checkpoint(directory)
    set_seed(seed)
    model = build_student(prepared, label, seed, checkpoint)
    interrupt = InterruptCallback()
    callbacks = [interrupt, ProgressCallback(f"{label}, seed {seed}"), *method_callbacks(recipe.method)]
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
    if recipe.after_training and label != PRETRAINED:
        ((change, share),) = recipe.after_training.items()
        change_after_training(model, change, share, seed=seed)
    if label != PRETRAINED:  # before it is measured, so that an error there loses nothing
        save_student(model, directory)
        if is_main_process():
            prepared.tokenizer.save_pretrained(directory)
            save_generation_settings(model, directory)
            write_text(directory / HISTORY_FILE, json.dumps(trainer.state.log_history, indent=1))
    with nothing_lost(recipe, _kept(label, directory), trainer.state.global_step):
        metrics, drift, intervals = measure(prepared, trainer, model, directory)
    if not is_main_process():
        raise WorkerDone
    if isinstance(model, BALoraModel) and label != PRETRAINED:
        model.drift, model.drift_rows = drift, evaluated_on(prepared)
        model.create_or_update_model_card(directory)
    run = Run(
        method=label,
        seed=seed,
        task=recipe.name,
        metrics={**metrics, **drift},
        train_seconds=trainer.train_seconds,
        peak_memory_mb=peak_memory_mb,
        trainable_parameters=trained,
        intervals=intervals,
        rows=row_counts(prepared),
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


def _kept(label: str, directory: Path) -> str:
    """Return what is kept of a run before it is measured, and what measures it again."""
    if label == PRETRAINED:
        return "the same command measures it again"
    if last_intact_checkpoint(directory) is None:  # with save_strategy: no
        return f"what was trained is saved in {directory}; measure it with `balora evaluate --adapter {directory}`"
    return f"what was trained is saved in {directory}, and the same command measures it without training again"


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def read_result(directory: Path) -> Run:
    """Read the result of a finished run.

    Raises:
        BALoraError: If `result.json` is damaged.
    """
    path = directory / RESULT_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)  # NaN becomes null
    except (ValueError, RecursionError) as error:
        raise BALoraError(f"{path} is damaged: {error}; delete it to have the run measured again") from error
    return run_from(record, str(path))


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Read the trainer's log of a finished run; the untouched model has none, so its log is empty."""
    path = directory / HISTORY_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
