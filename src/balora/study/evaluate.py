"""A saved adapter, measured as a recipe measures what it trains."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from balora.baselines import trainable_parameters
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import PRETRAINED, Run
from balora.study.measure import measure
from balora.study.model_and_data import ModelAndData, prepare
from balora.study.output_dir import named_folder
from balora.study.plan import single
from balora.study.progress import ProgressCallback
from balora.study.run import RESULT_FILE
from balora.study.student import build_student, load_student
from balora.study.trainers import build_trainer
from balora.utils.files import full_disk_named, write_text


@dataclass(frozen=True)
class EvaluationSettings:
    """What `balora evaluate` has beside a recipe's settings.

    Attributes:
        adapter: Folder that a run of balora, or PEFT, saved; null for the untouched model.
    """

    adapter: str | None = None


def evaluate(recipe: Recipe, settings: EvaluationSettings) -> Run:
    """Measure an adapter on the recipe's evaluation sets, texts and benchmarks.

    Writes `result.json`, and what benchmarks had the model write, into the recipe's `output_dir`.

    Raises:
        BALoraError: If the recipe, its data or the adapter is wrong, or the folder holds an evaluation already.
    """
    recipe = single(recipe)
    directory = named_folder(recipe)
    if (directory / RESULT_FILE).exists():
        raise BALoraError(f"output_dir: {directory} has a {RESULT_FILE} already; choose another --output_dir")
    if settings.adapter is not None and not (Path(settings.adapter) / "adapter_config.json").is_file():
        raise BALoraError(
            f"adapter: {settings.adapter} has no adapter_config.json; name the folder of a saved adapter"
        )
    prepared = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    if settings.adapter is None:
        model = build_student(prepared, PRETRAINED, recipe.seed, None)
    else:
        model = load_student(prepared, settings.adapter)
    directory.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(_to_evaluate(prepared), model, recipe.seed, directory, [])
    with full_disk_named(directory):
        metrics, drift = measure(prepared, trainer, model, directory)
    run = Run(
        method=PRETRAINED if settings.adapter is None else Path(settings.adapter).name,
        seed=recipe.seed,
        task=recipe.name,
        metrics={**metrics, **drift},
        train_seconds=0.0,
        peak_memory_mb=0.0,
        trainable_parameters=0 if settings.adapter is None else trainable_parameters(model),
    )
    write_text(directory / RESULT_FILE, json.dumps(vars(run), indent=1))
    return run


def _to_evaluate(prepared: ModelAndData) -> ModelAndData:
    """With one training row: the trainer is there for its evaluation sets, and tokenizes all that it is given."""
    return prepared if prepared.recipe.streaming else replace(prepared, train=prepared.train.select([0]))
