"""`balora calibrate`: find the weights that suit a recipe's task, and write them as an overlay of the recipe.

BA-LoRA's tuning recipe (appendix D.1): scale each λ on a calibration batch so that its gradient is a set fraction of
the task's, keep the ratios, search one common factor.
"""

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from balora.config import find_method
from balora.errors import BALoraError
from balora.model.calibration import FACTORS, Calibration, calibrate, default_fractions
from balora.model.regularizers import turned_off
from balora.recipe import Recipe
from balora.recipe.rows import ALTERNATIVES, Rows
from balora.report import Run
from balora.report.glossary import better_direction
from balora.study.comparison import DRIFT_METRICS, compare, task_metrics
from balora.study.plan import single
from balora.study.prepare import prepare
from balora.study.student import build_student
from balora.study.terminal import ProgressCallback
from balora.study.trainers import build_trainer
from balora.utils.files import write_text

#: Share of the training rows that judge the factors.
HELD_OUT = 0.2


@dataclass
class CalibrationSettings:
    """Settings of `balora calibrate`.

    Attributes:
        calibration_warmup: Share of training done on the task alone before anything is measured: at the start the
            student is the teacher, and consistency has no gradient. Null for 0.3 in classification, where the classes
            have to come apart first, and 0.1 in generation.
        calibration_batches: Micro-batches that the gradients are measured on.
        fractions: Share of the task's gradient that each term's is to have; 0 turns a term off.
        factors: Common factors to try, each by training on 4/5 of the training rows with the recipe's seeds and
            scoring the rest, in output_dir; [1] tries none. The best score of the task is taken, and the table shows
            what each keeps.
        calibrated_recipe: File to write, to give as a second `--recipe`; null puts `.calibrated` into the recipe's
            name.
    """

    calibration_warmup: float | None = None
    calibration_batches: int = 4
    fractions: dict[str, float] = field(default_factory=default_fractions)
    factors: list[float] = field(default_factory=lambda: list(FACTORS))
    calibrated_recipe: str | None = None

    def __post_init__(self) -> None:
        if self.calibration_warmup is not None and not 0 < self.calibration_warmup <= 1:
            raise BALoraError(f"calibration_warmup: {self.calibration_warmup} is not a share; use one up to 1")
        if self.calibration_batches < 1:
            raise BALoraError(f"calibration_batches: {self.calibration_batches} must be at least 1")
        if not self.factors or not all(factor > 0 for factor in self.factors):
            raise BALoraError(f"factors: {self.factors} must name at least one, all positive")
        if unknown := set(self.fractions) - set(default_fractions()):
            raise BALoraError(f"fractions: unknown term {min(unknown)!r}; use {', '.join(default_fractions())}")


class _StopAt(TrainerCallback):
    """Stop training when a share of it is done; the learning-rate schedule is that of the whole."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_training_stop |= state.global_step >= self.share * state.max_steps


def measure_gradients(recipe: Recipe, settings: CalibrationSettings, directory: Path) -> Calibration:
    """Train for a while on the task alone, then compare each term's gradient with the task's.

    Raises:
        BALoraError: If the recipe's method has no regularizers, the student has not left the teacher yet, or something
            in recipe or data is wrong.
    """
    recipe = single(recipe)
    method = find_method(recipe.method)
    if method is None or not method.regularized:
        raise BALoraError(f"method: {recipe.method} has no regularizers; use ba-lora or a method that ends in +reg")
    if recipe.streaming and len(settings.factors) > 1:
        raise BALoraError("factors: a stream has no rows to hold out and judge them by; give [1], or no streaming")
    prepared = prepare(recipe, callbacks=(ProgressCallback("pretraining the world's model"),))
    set_seed(recipe.seed)
    model = build_student(prepared, recipe.method, recipe.seed, None)
    warmup = settings.calibration_warmup or (0.3 if recipe.is_classification else 0.1)
    callbacks = [_StopAt(warmup), ProgressCallback("the task alone")]
    trainer = build_trainer(prepared, model, recipe.seed, directory, callbacks)
    trainer.remove_callback(PrinterCallback)
    regularized = model.balora_config
    model.balora_config = replace(regularized, **turned_off())
    trainer.train()
    model.balora_config = regularized
    batches = islice(trainer.get_train_dataloader(), settings.calibration_batches)
    calibration = calibrate(model, batches, settings.fractions)
    if "consistency" in calibration.reasons:
        raise BALoraError(f"calibration_warmup: {warmup} is too short ({calibration.reasons['consistency']})")
    return calibration


def search_factor(recipe: Recipe, calibration: Calibration, factors: list[float]) -> tuple[float, list[Run]]:
    """Train with each common factor, on part of the training rows, and score on the rest.

    Args:
        recipe: Its `output_dir` holds the study, which the same call resumes.
        calibration: The weights that the factors multiply.
        factors: Tried in this order; the first of equals wins.

    Returns:
        The factor with the best mean of the task's metric over seeds, and all runs.
    """
    variants = {_variant(factor): {"method": recipe.method, **calibration.settings(factor)} for factor in factors}
    evaluation = {name: getattr(Rows, name) for pair in ALTERNATIVES for name in pair}  # none of the final report's
    evaluation["validation_share"] = HELD_OUT
    study = replace(single(recipe), methods=list(variants), baseline=None, method_settings=variants, **evaluation)
    runs = compare(study)
    return _best_factor(task_metrics(study, runs)[study.name], runs, factors), runs


def explain_choice(recipe: Recipe, runs: list[Run], factors: list[float], chosen: float) -> str:
    """Return what the factor was chosen by, and which factor keeps more of the pretrained model.

    Args:
        recipe: The recipe of the search.
        runs: Its runs.
        factors: The factors that were tried.
        chosen: The one with the best task metric.
    """
    task = single(recipe)
    metric = task_metrics(task, runs)[task.name]
    said = f"common factor: {chosen:g}, by {metric} on rows held out from training; what is kept did not count"
    kept = [name for name in DRIFT_METRICS if name != metric and all(name in run.metrics for run in runs)]
    others = {name: best for name in kept if (best := _best_factor(name, runs, factors)) != chosen}
    for name, best in others.items():
        values = [f"{_mean(each, runs, factor):.3g}" for each in (name, metric) for factor in (best, chosen)]
        said += "\n{} is better with {:g}: {} instead of {}, where {} is {} instead of {}".format(
            name, best, *values[:2], metric, *values[2:]
        )
    if others:
        return f"{said}\nTo take another factor, give `--factors '[{next(iter(others.values())):g}]'`."
    return f"{said}, and is best with it too ({', '.join(kept)})" if kept else said


def _variant(factor: float) -> str:
    return f"× {factor:g}"


def _mean(metric: str, runs: list[Run], factor: float) -> float:
    values = [run.metrics[metric] for run in runs if run.method == _variant(factor)]
    return sum(values) / len(values)


def _best_factor(metric: str, runs: list[Run], factors: list[float]) -> float:
    best = min if better_direction(metric) == "lower" else max
    return best(factors, key=lambda factor: _mean(metric, runs, factor))


def calibrated_recipe(source: Path, settings: CalibrationSettings) -> Path:
    """Return the file to write, which must not exist yet.

    Raises:
        BALoraError: If it does.
    """
    target = Path(settings.calibrated_recipe or source.with_suffix(f".calibrated{source.suffix}"))
    if target.exists():
        raise BALoraError(f"calibrated_recipe: {target} exists already; name another file")
    return target


def write_calibrated(source: Path, target: Path, weights: dict[str, float]) -> None:
    """Write the weights as an overlay: a recipe file to give beside the one that they were found for.

    Args:
        source: The recipe.
        target: The file to write.
        weights: By setting.
    """
    heading = f"# Weights that `balora calibrate` found. Train with: balora train {source} --recipe {target}\n"
    write_text(target, heading + yaml.safe_dump(weights, sort_keys=False))
