"""Measure a run's model: how well it learned its task, and how far it moved from the pretrained model."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from balora.adapters.task_adapters import task_distance
from balora.errors import BALoraError, Interrupted, WorkerDone
from balora.evaluation.classification import classification_metrics, predict, predict_labels, text_to_text_metrics
from balora.model.drift import drift_of, measure_loss_and_drift
from balora.recipe import Recipe
from balora.study.benchmarks import run_benchmarks
from balora.study.measures.answers import measure_answers, single_questions
from balora.study.measures.geometry import measure_geometry
from balora.study.measures.noise import measure_noise
from balora.study.model_and_data import ModelAndData, preservation_metrics
from balora.study.student import Teacher, teacher_of
from balora.study.trainers import batches_in_order, evaluation_batches
from balora.utils.distributed import is_main_process, is_sharded_launch

Metrics = dict[str, float]
Intervals = dict[str, tuple[float, float]]


def measure(
    prepared: ModelAndData,
    trainer: Trainer,
    model: PreTrainedModel | PeftModel,
    directory: Path,
    teacher: Teacher | None = None,
) -> tuple[Metrics, Metrics, Intervals]:
    """Return a model's task and preservation metrics, its drift from the pretrained model, and 95 % intervals.

    Args:
        prepared: The run's model, rows and metrics.
        trainer: Supplies the evaluation sets and their batches.
        model: The student.
        directory: Folder of the run, where details for the report's figures are saved.
        teacher: The pretrained function; `None` for that of a model trained in this process.

    Raises:
        WorkerDone: In every process except the first, if each has the whole model.
    """
    if is_main_process():
        return _measure(prepared, trainer, model, directory, teacher)
    if not is_sharded_launch():
        raise WorkerDone
    # The model is sharded, so every process runs the same passes on all rows.
    with TemporaryDirectory(prefix="balora-") as scratch:
        return _measure(prepared, trainer, model, Path(scratch), teacher)


@contextmanager
def nothing_lost(recipe: Recipe, kept: str, step: int = 0) -> Iterator[None]:
    """Context manager: an interrupted measurement, or one without memory, says what is kept and how it resumes.

    Args:
        recipe: Supplies the batch size.
        kept: What is kept, and what measures it again.
        step: Optimizer steps done.

    Raises:
        BALoraError: If the device has too little memory.
        Interrupted: On Ctrl-C.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        now = recipe.per_device_eval_batch_size
        raise BALoraError(
            f"out of device memory while measuring: lower per_device_eval_batch_size ({now} now); {kept}"
        ) from error
    except KeyboardInterrupt as error:
        raise Interrupted(signal.SIGINT, step, f"while measuring; {kept}") from error


def _measure(
    prepared: ModelAndData,
    trainer: Trainer,
    model: PreTrainedModel | PeftModel,
    directory: Path,
    teacher: Teacher | None,
) -> tuple[Metrics, Metrics, Intervals]:
    teacher = teacher or teacher_of(prepared, model)
    metrics, drift = {}, {}
    sets = _evaluation_sets(prepared, trainer)
    for name, (rows, tokens) in sets.items():
        if prepared.recipe.is_classification:
            parts = _measure_classes(prepared, trainer, model, teacher, tokens)
        else:
            parts = _measure_text(trainer, model, teacher, tokens)
            if prepared.recipe.has_labels:
                parts[0].update(_measure_written_classes(prepared, trainer, model, rows, tokens))
        suffix = "" if name == "validation" else f"_{name}"
        for gathered, part in zip((metrics, drift), parts, strict=True):
            gathered.update({f"{key}{suffix}": value for key, value in part.items()})
    if prepared.recipe.geometry:
        batches = evaluation_batches(trainer, sets["validation"][1])
        metrics |= measure_geometry(model, batches, prepared.label_names, prepared.minority(), directory)
    if prepared.recipe.qa_format is not None and prepared.validation is not None:
        metrics |= measure_answers(prepared, trainer, model, directory)
    if prepared.recipe.noise_kinds and prepared.validation is not None:
        metrics |= measure_noise(prepared, trainer, model, teacher, sets["validation"][1], directory)
    if prepared.recipe.task_names is not None:
        metrics["task_distance"] = task_distance(model, prepared.recipe.task_names)
        model.set_adapter(prepared.recipe.task_names[0])  # for measurements that belong to neither task
    if prepared.single is not None:
        metrics |= single_questions(prepared, trainer, model)
    found = run_benchmarks(prepared.benchmarks, model, directory)
    metrics |= {name: estimate.value for name, estimate in found.items()}
    intervals = {name: (own.low, own.high) for name, own in found.items() if not np.isnan(own.low)}
    return metrics | preservation_metrics(prepared, model), drift, intervals


def _evaluation_sets(prepared: ModelAndData, trainer: Trainer) -> dict[str, tuple[Dataset, Dataset]]:
    """Return each evaluation set by name, as rows and as the trainer's tokens."""
    rows = {"validation": prepared.validation, **prepared.others}
    tokens = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"validation": trainer.eval_dataset}
    return {name: (rows[name], tokens[name]) for name in tokens if tokens[name] is not None}


def _measure_classes(
    prepared: ModelAndData,
    trainer: Trainer,
    model: PreTrainedModel | PeftModel,
    teacher: Callable[..., Any],
    tokens: Dataset,
) -> tuple[Metrics, Metrics]:
    predictions = predict(model, teacher, evaluation_batches(trainer, tokens))
    logits, labels = predictions.logits.numpy(), predictions.labels.numpy()  # (N, C), (N,)
    scores = classification_metrics(logits, labels, minority=prepared.minority())
    return scores, drift_of(predictions.logits, predictions.teacher_logits)


def _measure_text(
    trainer: Trainer, model: PreTrainedModel | PeftModel, teacher: Callable[..., Any], tokens: Dataset
) -> tuple[Metrics, Metrics]:
    loss, drift = measure_loss_and_drift(model, evaluation_batches(trainer, tokens), teacher)
    return {"eval_loss": loss}, drift


def _measure_written_classes(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, rows: Dataset, tokens: Dataset
) -> Metrics:
    predictions = predict_labels(model, batches_in_order(trainer, tokens), prepared.tokenizer, prepared.label_names)
    labels = np.array(rows["label"])
    return text_to_text_metrics(predictions, labels, prepared.label_names, minority=prepared.minority())
