"""Noise in a study: stability, shift and bias as the evaluation's inputs get noisier, kept with each run and drawn.

Structural regularization's study of noise injection.
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
from balora.report.by_level import ByLevel, by_level_figure
from balora.study.artifacts import Drawn, Finished, with_file
from balora.study.benchmarks import run_bias_benchmarks
from balora.study.model_and_data import ModelAndData
from balora.study.student import Teacher
from balora.study.trainers import evaluation_batches
from balora.utils.files import write_text

NOISE_FILE = "noise.json"
DRAWN = ("stability", "representation_shift")
CAPTION = (
    "The evaluation set with noise in its inputs: a share of the tokens replaced, or normal draws of that size "
    "relative to the embeddings added. Stability is the share of predictions that stay what they were without noise. "
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
    """Stability, representation shift and the recipe's bias benchmarks at every level of every kind of noise.

    Args:
        prepared: Of the run.
        trainer: For batches.
        model: The student.
        teacher: The pretrained function.
        tokens: The evaluation set as the trainer has it.
        directory: The run's folder, where all figures are kept.

    Returns:
        `stability_KIND`, the mean over levels.
    """
    recipe, spared = prepared.recipe, prepared.tokenizer.all_special_ids
    clean = predicted(model, evaluation_batches(trainer, tokens))

    def figures(folder: str) -> dict[str, float]:
        return {
            **measure_representation_shift(model, evaluation_batches(trainer, tokens), teacher),
            **run_bias_benchmarks(prepared.benchmarks, model, directory / folder),
        }

    without = {"stability": 1.0, **figures("noise_0")}
    found: dict[str, dict[float, dict[str, float]]] = {}
    for kind in recipe.noise_kinds:
        found[kind] = {0.0: without}
        for level in recipe.noise_levels:
            with ExitStack() as noise:
                for read_by in {id(module): module for module in (model, teacher.model)}.values():
                    noise.enter_context(noisy_inputs(read_by, kind, level, spared=spared))
                noisy = predicted(model, evaluation_batches(trainer, tokens))
                found[kind][level] = {"stability": stability(clean, noisy), **figures(f"noise_{kind}_{level:g}")}
    write_text(directory / NOISE_FILE, json.dumps(found, indent=1))
    return {
        f"stability_{kind}": float(np.mean([figures["stability"] for level, figures in levels.items() if level > 0]))
        for kind, levels in found.items()
    }


def noise_figures(finished: list[Finished]) -> list[Drawn]:
    """For each task and kind of noise that was measured, all figures by level."""
    measured: dict[tuple[str, str], list[tuple[Run, ByLevel]]] = {}
    for done, file in with_file(finished, NOISE_FILE):
        for kind, levels in json.loads(file.read_text()).items():
            names = [name for name in next(iter(levels.values())) if name in DRAWN or name.endswith("_bias_score")]
            panels = {name: {float(level): found[name] for level, found in levels.items()} for name in names}
            measured.setdefault((done.run.task, kind), []).append((done.run, panels))
    return [
        (f"{task}: {kind} noise", CAPTION, by_level_figure(found, "level")) for (task, kind), found in measured.items()
    ]
