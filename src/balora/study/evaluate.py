"""`balora evaluate`: measure a saved adapter with a recipe's evaluation sets and benchmarks."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run
from balora.study.measures.measure import measure
from balora.study.model_and_data import ModelAndData, prepare
from balora.study.output_dir import named_folder
from balora.study.plan import single
from balora.study.run import RESULT_FILE
from balora.study.student import build_student, load_student
from balora.study.terminal import ProgressCallback
from balora.study.trainers import build_trainer, evaluated_on, row_counts
from balora.utils.files import report_full_disk, write_text
from balora.utils.modules import trainable_parameters


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of `balora evaluate` beside a recipe's.

    Attributes:
        adapter: Folder of an adapter that balora or PEFT saved; null for the untouched model.
    """

    adapter: str | None = None


def evaluate(recipe: Recipe, settings: EvaluationSettings) -> Run:
    """Measure an adapter on the recipe's evaluation sets, texts and benchmarks.

    Writes `result.json` and the texts generated for benchmarks into the recipe's `output_dir`.

    Raises:
        BALoraError: If the recipe, its data or the adapter is wrong, or the folder holds an evaluation already.
    """
    recipe = single(recipe)
    directory = named_folder(recipe)
    if (directory / RESULT_FILE).exists():
        raise BALoraError(f"output_dir: {directory} already has a {RESULT_FILE}; choose another --output_dir")
    if settings.adapter is not None and not (Path(settings.adapter) / "adapter_config.json").is_file():
        raise BALoraError(
            f"adapter: {settings.adapter} has no adapter_config.json; name the folder of a saved adapter"
        )
    prepared = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    if not (evaluated_on(prepared) or prepared.texts or prepared.benchmarks or prepared.world or prepared.single):
        raise BALoraError(
            "validation_file: missing, so there is nothing to measure; name a validation_file, a perplexity_file or "
            "benchmarks, or the validation_share that was held out in training"
        )
    if settings.adapter is None:
        model = build_student(prepared, PRETRAINED, recipe.seed, None)
    else:
        model = load_student(prepared, settings.adapter)
    directory.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(_to_evaluate(prepared), model, recipe.seed, directory, [])
    with report_full_disk(directory):
        metrics, drift, intervals = measure(prepared, trainer, model, directory)
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


def _to_evaluate(prepared: ModelAndData) -> ModelAndData:
    """Keep one training row: the trainer tokenizes all rows, and only the evaluation sets are needed here."""
    return prepared if prepared.recipe.streaming else replace(prepared, train=prepared.train.select([0]))
