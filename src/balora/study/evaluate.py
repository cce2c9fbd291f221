"""`balora evaluate`: measure a saved adapter with a recipe's evaluation sets and benchmarks."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from balora.data.truncation import first_kept
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run
from balora.study.measures.measure import measure, nothing_lost
from balora.study.model_and_data import ModelAndData
from balora.study.output_dir import RECIPE_FILE, named_folder
from balora.study.prepare import prepare
from balora.study.run import RESULT_FILE
from balora.study.student import build_student, is_saved_student, load_student, teacher_of
from balora.study.terminal import ProgressCallback
from balora.study.trainers import build_trainer, evaluated_on, row_counts
from balora.utils.files import report_full_disk, write_text
from balora.utils.locks import locked
from balora.utils.modules import trainable_parameters

#: Folder of an evaluation inside that of a training run.
FOLDER = "evaluation"


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of `balora evaluate` beside a recipe's.

    Attributes:
        adapter: Folder of an adapter that balora or PEFT saved; null for the untouched model.
    """

    adapter: str | None = None


def evaluate(recipe: Recipe, settings: EvaluationSettings, directory: Path) -> Run:
    """Measure an adapter on the recipe's evaluation sets, texts and benchmarks.

    Args:
        recipe: A recipe of one task.
        settings: The command's own settings.
        directory: Folder for `result.json` and the texts generated for benchmarks, see `evaluation_folder`.

    Raises:
        BALoraError: If the recipe, its data or the adapter is wrong, or another process writes to the folder.
    """
    if settings.adapter is not None and not is_saved_student(settings.adapter):
        raise BALoraError(
            f"adapter: {settings.adapter} has no adapter_config.json; name the folder of a saved adapter or of a "
            "model that balora trained"
        )
    with locked(directory):
        return _evaluate(recipe, settings, directory)


def _evaluate(recipe: Recipe, settings: EvaluationSettings, directory: Path) -> Run:
    prepared = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    if not (evaluated_on(prepared) or prepared.texts or prepared.benchmarks or prepared.world or prepared.single):
        raise BALoraError(
            "validation_file: missing, so there is nothing to measure; name a validation_file, a perplexity_file or "
            "benchmarks, or the validation_share that was held out in training"
        )
    if settings.adapter is None:
        model = build_student(prepared, PRETRAINED, recipe.seed, None)
        teacher = teacher_of(prepared, model)
    else:
        model, teacher = load_student(prepared, settings.adapter)
    trainer = build_trainer(_to_evaluate(prepared), model, recipe.seed, directory, [])
    with report_full_disk(directory), nothing_lost(recipe, "the same command measures it again"):
        metrics, drift, intervals = measure(prepared, trainer, model, directory, teacher)
    run = Run(
        method=PRETRAINED if settings.adapter is None else Path(settings.adapter).name,
        seed=recipe.seed,
        task=recipe.name,
        metrics={**metrics, **drift},
        train_seconds=0.0,
        peak_memory_mb=0.0,
        trainable_parameters=0 if settings.adapter is None else trainable_parameters(model),
        intervals=intervals,
        rows={name: count for name, count in row_counts(prepared).items() if name != "train"},
    )
    write_text(directory / RESULT_FILE, json.dumps(vars(run), indent=1))
    return run


def evaluation_folder(recipe: Recipe, settings: EvaluationSettings) -> Path:
    """Return the folder for the results: `output_dir`, or `evaluation` inside the folder of a training run.

    The latter is the adapter's folder if the recipe has no `output_dir`, and `output_dir` if training ran there.

    Raises:
        BALoraError: If no folder is named, or it has an evaluation already.
    """
    if recipe.output_dir is None and settings.adapter is not None:
        directory = Path(settings.adapter) / FOLDER
    else:
        directory = named_folder(recipe)
        if (directory / RECIPE_FILE).exists():
            directory /= FOLDER
    if (directory / RESULT_FILE).exists():
        raise BALoraError(f"output_dir: {directory} already has a {RESULT_FILE}; choose another --output_dir")
    return directory


def _to_evaluate(prepared: ModelAndData) -> ModelAndData:
    """Keep one training row: the trainer tokenizes all rows, and only the evaluation sets are needed here."""
    recipe, train = prepared.recipe, prepared.train
    if recipe.streaming:
        return prepared
    causal = not (recipe.has_labels or recipe.is_seq2seq)
    limits = {"source": "the train rows", "max_length": recipe.max_length}
    return replace(prepared, train=train.select([first_kept(train, prepared.tokenizer, **limits) if causal else 0]))
