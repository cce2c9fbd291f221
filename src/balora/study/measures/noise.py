"""Noise in the inputs: measure stability, representation shift and bias by noise level, save them and draw them.

The measurements of structural regularization's noise-injection experiment.
"""

import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from peft import PeftModel
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer

from balora.evaluation.noise import noisy_inputs, predicted, stability
from balora.evaluation.shift import measure_representation_shift
from balora.report import Run
from balora.report.figures.sweep import ByLevel, level_figure
from balora.study.benchmarks import run_bias_benchmarks
from balora.study.measures.finished import CaptionedFigure, FinishedRun, runs_with
from balora.study.model_and_data import ModelAndData
from balora.study.student import Teacher
from balora.study.trainers import evaluation_batches
from balora.utils.files import write_text

NOISE_FILE = "noise.json"
DRAWN = ("stability", "representation_shift")
CAPTION = (
    "The evaluation set with noise in its inputs: a fraction of the tokens replaced, or Gaussian noise of that size "
    "relative to the embeddings added. Stability is the fraction of predictions that are the same as without noise. "
    "Means over seeds, with a band of one standard deviation."
)


def measure_noise(
    prepared: ModelAndData,
    trainer: Trainer,
    model: PreTrainedModel | PeftModel,
    teacher: Teacher,
    tokens: Dataset,
    directory: Path,
) -> dict[str, float]:
    """Measure stability, representation shift and the recipe's bias benchmarks at each level of each kind of noise.

    Args:
        prepared: The run's model, rows and metrics.
        trainer: Supplies the batches.
        model: The student.
        teacher: The pretrained function.
        tokens: The evaluation set, tokenized by the trainer.
        directory: Folder of the run, where all metrics are saved.

    Returns:
        `stability_KIND`, the mean over levels.
    """
    recipe, spared = prepared.recipe, prepared.tokenizer.all_special_ids
    clean = predicted(model, evaluation_batches(trainer, tokens))

    def metrics(folder: str) -> dict[str, float]:
        return {
            **measure_representation_shift(model, evaluation_batches(trainer, tokens), teacher),
            **run_bias_benchmarks(prepared.benchmarks, model, directory / folder),
        }

    clean_metrics = {"stability": 1.0, **metrics("noise_0")}
    found: dict[str, dict[float, dict[str, float]]] = {}
    for kind in recipe.noise_kinds:
        found[kind] = {0.0: clean_metrics}
        for level in recipe.noise_levels:
            with ExitStack() as noise:
                for module in {id(module): module for module in (model, teacher.model)}.values():  # one model, or two
                    noise.enter_context(noisy_inputs(module, kind, level, spared=spared))
                noisy = predicted(model, evaluation_batches(trainer, tokens))
                found[kind][level] = {"stability": stability(clean, noisy), **metrics(f"noise_{kind}_{level:g}")}
    write_text(directory / NOISE_FILE, json.dumps(found, indent=1))
    return {
        f"stability_{kind}": float(np.mean([scores["stability"] for level, scores in levels.items() if level > 0]))
        for kind, levels in found.items()
    }


def noise_figures(finished: list[FinishedRun]) -> list[CaptionedFigure]:
    """Draw all metrics by noise level, for each task and kind of noise."""
    measured: dict[tuple[str, str], list[tuple[Run, ByLevel]]] = {}
    for done, file in runs_with(finished, NOISE_FILE):
        for kind, levels in json.loads(file.read_text()).items():
            names = [name for name in next(iter(levels.values())) if name in DRAWN or name.endswith("_bias_score")]
            panels = {name: {float(level): found[name] for level, found in levels.items()} for name in names}
            measured.setdefault((done.run.task, kind), []).append((done.run, panels))
    return [
        (f"{task}: {kind} noise", CAPTION, level_figure(found, "level")) for (task, kind), found in measured.items()
    ]
