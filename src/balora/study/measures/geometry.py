"""Geometry of the classes: measure and save it for each run, and draw runs side by side.

The measurements of BA-LoRA's imbalance experiment (section 3.2.3, figure 3, table 12).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from sklearn.metrics import confusion_matrix
from torch import Tensor
from transformers import PreTrainedModel

from balora.evaluation.representation import final_representation, project, silhouettes
from balora.report.figures.classification import confusion_figure, tsne_figure
from balora.study.measures.finished import CaptionedFigure, FinishedRun, runs_with

GEOMETRY_FILE = "geometry.npz"
MAPS = (
    "Maps of the classes",
    "t-SNE (perplexity 30, 1,000 iterations, seed 42) of the final representation of the evaluation set, one seed. "
    "Neither axes nor distances between clusters have a meaning.",
)
CONFUSIONS = ("Confusion", "Confusion matrix of the evaluation set, one seed.")


def measure_geometry(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[dict[str, Tensor]],
    label_names: list[str],
    minority: int,
    directory: Path,
) -> dict[str, float]:
    """Return the silhouettes of the final representation and of the logits; save what the report draws.

    Args:
        model: A sequence classifier.
        batches: The evaluation set.
        label_names: Names of the classes.
        minority: The class with the fewest training rows.
        directory: Folder of the run.
    """
    features, logits, labels = final_representation(model, batches)
    np.savez(
        directory / GEOMETRY_FILE,
        points=project(features),
        logits=logits,
        labels=labels,
        label_names=label_names,
        minority=minority,
    )
    of_logits = silhouettes(logits, labels, minority=minority)
    return silhouettes(features, labels, minority=minority) | {f"{k}_logits": v for k, v in of_logits.items()}


def geometry_figures(finished: list[FinishedRun]) -> list[CaptionedFigure]:
    """Draw t-SNE maps and confusion matrices of a study's first seed, one panel for each task and method.

    There are two figures for every set of classes, since panels share a legend.
    """
    # By names of the classes and the minority class, which the panels of a figure share.
    maps: dict[tuple[tuple[str, ...], int], dict[str, Any]] = {}
    matrices: dict[tuple[tuple[str, ...], int], dict[str, Any]] = {}
    for done, file in runs_with(finished, GEOMETRY_FILE):
        planned, metrics = done.planned, done.run.metrics
        if planned.seed != finished[0].planned.seed:
            continue
        title = f"{planned.recipe.name}: {planned.label}"
        silhouette = f"{title}\nsilhouette {metrics['silhouette']:.2f}, minority {metrics['silhouette_minority']:.2f}"
        recall = f"{title}\nminority recall {metrics['minority_recall']:.2f}"
        with np.load(file) as saved:
            names = tuple(saved["label_names"].tolist())
            classes = (names, int(saved["minority"]))
            maps.setdefault(classes, {})[silhouette] = (saved["points"], saved["labels"])
            counts = confusion_matrix(saved["labels"], saved["logits"].argmax(-1), labels=np.arange(len(names)))
            matrices.setdefault(classes, {})[recall] = counts
    figures = []
    for names, minority in maps:
        drawn = maps[names, minority], matrices[names, minority]
        figures.append((*MAPS, tsne_figure(drawn[0], names, minority=minority)))
        figures.append((*CONFUSIONS, confusion_figure(drawn[1], names)))
    return figures
