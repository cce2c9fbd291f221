"""What a run is judged by: how well its task was learned, and what was kept of the pretrained model."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from balora.adapters.task_adapters import task_distance
from balora.errors import WorkerDone
from balora.evaluation.classification import classification_metrics, predict
from balora.evaluation.language import held_out_loss
from balora.evaluation.text_to_text import predict_labels, text_to_text_metrics
from balora.model.drift import drift_of, measure_drift
from balora.study.answers import measure_answers, single_questions
from balora.study.benchmarks import run_benchmarks
from balora.study.geometry import measure_geometry
from balora.study.model_and_data import ModelAndData, preservation_metrics
from balora.study.noise import measure_noise
from balora.study.student import teacher_of
from balora.study.trainers import batches_in_order, evaluation_batches
from balora.utils.distributed import is_main_process, is_sharded_launch

Metrics = dict[str, float]


def measure(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, directory: Path
) -> tuple[Metrics, Metrics]:
    """Task and preservation metrics, and drift from the base, of a model as it stands.

    Args:
        prepared: Of the run.
        trainer: For its evaluation sets and their batches.
        model: The student.
        directory: The run's folder, for what the report draws of the classes' geometry.

    Raises:
        WorkerDone: In every process but the first, where each has the whole model.
    """
    if is_main_process():
        return _measured(prepared, trainer, model, directory)
    if not is_sharded_launch():
        raise WorkerDone
    # Every process runs the same passes on all rows, since no one of them has the whole model.
    with TemporaryDirectory(prefix="balora-") as scratch:
        return _measured(prepared, trainer, model, Path(scratch))


def _measured(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, directory: Path
) -> tuple[Metrics, Metrics]:
    teacher = teacher_of(prepared, model)
    metrics, drift = {}, {}
    sets = _evaluation_sets(prepared, trainer)
    for name, (rows, tokens) in sets.items():
        if prepared.recipe.is_classification:
            parts = _of_classes(prepared, trainer, model, teacher, tokens)
        else:
            parts = _of_text(trainer, model, teacher, tokens)
            if prepared.recipe.has_labels:
                parts[0].update(_of_written_classes(prepared, trainer, model, rows, tokens))
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
        model.set_adapter(prepared.recipe.task_names[0])  # for what is of neither task
    if prepared.single is not None:
        metrics |= single_questions(prepared, trainer, model)
    metrics |= run_benchmarks(prepared.benchmarks, model, directory)
    return metrics | preservation_metrics(prepared, model), drift


def _evaluation_sets(prepared: ModelAndData, trainer: Trainer) -> dict[str, tuple[Dataset, Dataset]]:
    """By name, each set as rows and as the trainer has it."""
    rows = {"validation": prepared.validation, **prepared.others}
    tokens = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"validation": trainer.eval_dataset}
    return {name: (rows[name], tokens[name]) for name in tokens if tokens[name] is not None}


def _of_classes(
    prepared: ModelAndData,
    trainer: Trainer,
    model: PreTrainedModel | PeftModel,
    teacher: Callable[..., Any],
    tokens: Dataset,
) -> tuple[Metrics, Metrics]:
    said = predict(model, teacher, evaluation_batches(trainer, tokens))
    scores = classification_metrics(said.logits.numpy(), said.labels.numpy(), minority=prepared.minority())
    return scores, drift_of(said.logits, said.teacher_logits)


def _of_text(
    trainer: Trainer, model: PreTrainedModel | PeftModel, teacher: Callable[..., Any], tokens: Dataset
) -> tuple[Metrics, Metrics]:
    loss = held_out_loss(model, evaluation_batches(trainer, tokens))
    return {"eval_loss": loss}, measure_drift(model, evaluation_batches(trainer, tokens), teacher)


def _of_written_classes(
    prepared: ModelAndData, trainer: Trainer, model: PreTrainedModel | PeftModel, rows: Dataset, tokens: Dataset
) -> Metrics:
    predictions = predict_labels(model, batches_in_order(trainer, tokens), prepared.tokenizer, prepared.label_names)
    labels = np.array(rows["label"])
    return text_to_text_metrics(predictions, labels, prepared.label_names, minority=prepared.minority())
