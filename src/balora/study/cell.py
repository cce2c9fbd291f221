"""One cell of a study: one method, one seed, from the pretrained model to its figures."""

import json
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from balora.adapters.averaging import average_with_base
from balora.errors import BALoraError
from balora.model import BALoraModel
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run
from balora.rivals import trainable_parameters
from balora.study.measure import measure
from balora.study.progress import ProgressCallback
from balora.study.run_dir import write_text
from balora.study.student import build_student, callbacks_of, save_student
from balora.study.trainers import build_trainer
from balora.study.workload import prepare
from balora.training import InterruptCallback

RESULT_FILE = "result.json"
HISTORY_FILE = "history.json"


class Interrupted(Exception):
    """A signal stopped the run after its checkpoint was saved.

    Attributes:
        number: The signal's.
        step: Optimizer steps done.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}" + (f" after step {step}" if step else ""))
        self.number, self.step = number, step


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
        BALoraError: If something in the recipe or the data is wrong, or the loss is not finite.
        Interrupted: On Ctrl-C or SIGTERM, after saving.
    """
    if (directory / RESULT_FILE).exists():
        return result_of(directory)
    directory.mkdir(parents=True, exist_ok=True)
    workload = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    checkpoint = get_last_checkpoint(str(directory))
    set_seed(seed)
    model = build_student(workload, label, seed, checkpoint)
    interrupt = InterruptCallback()
    callbacks = [interrupt, ProgressCallback(f"{label}, seed {seed}"), *callbacks_of(recipe.method)]
    trainer = build_trainer(workload, model, seed, directory, callbacks)
    trainer.remove_callback(PrinterCallback)
    seconds = _train(trainer, checkpoint) if label != PRETRAINED else 0.0
    if interrupt.received is not None and trainer.state.global_step < trainer.state.max_steps:
        raise Interrupted(interrupt.received, trainer.state.global_step)
    peak_memory_mb = _peak_memory_mb()
    trained = trainable_parameters(model) if label != PRETRAINED else 0
    if recipe.wise_ft is not None and label != PRETRAINED:
        average_with_base(model, recipe.wise_ft)
    metrics, drift = measure(workload, trainer, model, directory)
    if label != PRETRAINED:
        if isinstance(model, BALoraModel):
            model.drift = drift
        save_student(model, directory)
        workload.tokenizer.save_pretrained(directory)
        write_text(directory / HISTORY_FILE, json.dumps(trainer.state.log_history, indent=1))
    run = Run(
        method=label,
        seed=seed,
        task=recipe.name,
        metrics={**metrics, **drift},
        train_seconds=seconds,
        peak_memory_mb=peak_memory_mb,
        trainable_parameters=trained,
    )
    write_text(directory / RESULT_FILE, json.dumps(vars(run), indent=1))
    for left in directory.glob("checkpoint-*"):
        shutil.rmtree(left)
    return run


def _train(trainer: Trainer, checkpoint: str | None) -> float:
    """Seconds of training, those before an interruption included."""
    clock = Path(trainer.args.output_dir) / "seconds.json"
    before = json.loads(clock.read_text()) if checkpoint is not None and clock.exists() else 0.0
    if checkpoint is not None and _is_done(trainer, checkpoint):
        return before
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except torch.OutOfMemoryError as error:
        raise BALoraError(
            "out of device memory: lower per_device_train_batch_size (raising gradient_accumulation_steps keeps the "
            "batch), set max_length, or set gradient_checkpointing: true"
        ) from error
    seconds = before + time.perf_counter() - start
    write_text(clock, json.dumps(seconds))
    return seconds


def _is_done(trainer: Trainer, checkpoint: str) -> bool:
    """Whether the checkpoint is training's last, which is then loaded: Trainer would train one more step from it."""
    state = TrainerState.load_from_json(Path(checkpoint) / TRAINER_STATE_NAME)
    if state.global_step < state.max_steps:
        return False
    trainer._load_from_checkpoint(checkpoint)
    trainer.state = state
    return True


def _peak_memory_mb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def result_of(directory: Path) -> Run:
    """The figures of a finished cell."""
    return Run(**json.loads((directory / RESULT_FILE).read_text()))


def history_of(directory: Path) -> list[dict[str, Any]]:
    """The log of a finished cell, empty for the untouched model."""
    file = directory / HISTORY_FILE
    return json.loads(file.read_text()) if file.exists() else []
