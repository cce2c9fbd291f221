"""The classes' geometry in a study: measured and kept with each run, drawn side by side in the report.

BA-LoRA's study of imbalance (section 3.2.3, figure 3, table 12).
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
from balora.study.artifacts import Drawn, Finished, with_file

GEOMETRY_FILE = "geometry.npz"
MAPS = (
    "Maps of the classes",
    "t-SNE (perplexity 30, 1,000 iterations, seed 42) of the final representation of the evaluation set, one seed. "
    "Distances between clusters and axes mean nothing.",
)
CONFUSIONS = ("Confusion", "Which class is taken for which, on the evaluation set, one seed.")


def measure_geometry(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[dict[str, Tensor]],
    label_names: list[str],
    minority: int,
    directory: Path,
) -> dict[str, float]:
    """Silhouettes of the final representation and of the logits; what the report draws is kept in the run's folder.

    Args:
        model: A sequence classifier.
        batches: The evaluation set.
        label_names: Of the classes.
        minority: The class that is scarcest in training.
        directory: The run's folder.
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


def geometry_figures(finished: list[Finished]) -> list[Drawn]:
    """Maps and confusion matrices of a study's first seed, a panel for each task and method whose geometry was kept.

    Two figures for every set of classes, since panels share a legend.
    """
    # By names of the classes and the scarcest in training, which panels of one figure share.
    maps: dict[tuple[tuple[str, ...], int], dict[str, Any]] = {}
    matrices: dict[tuple[tuple[str, ...], int], dict[str, Any]] = {}
    for done, file in with_file(finished, GEOMETRY_FILE):
        cell, found = done.cell, done.run.metrics
        if cell.seed != finished[0].cell.seed:
            continue
        title = f"{cell.recipe.name}: {cell.label}"
        silhouette = f"{title}\nsilhouette {found['silhouette']:.2f}, minority {found['silhouette_minority']:.2f}"
        recall = f"{title}\nminority recall {found['minority_recall']:.2f}"
        with np.load(file) as kept:
            names = tuple(kept["label_names"].tolist())
            classes = (names, int(kept["minority"]))
            maps.setdefault(classes, {})[silhouette] = (kept["points"], kept["labels"])
            counts = confusion_matrix(kept["labels"], kept["logits"].argmax(-1), labels=np.arange(len(names)))
            matrices.setdefault(classes, {})[recall] = counts
    figures = []
    for names, minority in maps:
        drawn = maps[names, minority], matrices[names, minority]
        figures.append((*MAPS, tsne_figure(drawn[0], names, minority=minority)))
        figures.append((*CONFUSIONS, confusion_figure(drawn[1], names)))
    return figures
