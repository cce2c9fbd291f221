"""Classification and regression: scikit-learn's metrics on a model's predictions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.utils.modules import evaluation_mode


@dataclass(frozen=True)
class Predictions:
    """What a model and its teacher say of a set: `logits` and `teacher_logits` `(N, D)`, `labels` `(N,)`."""

    logits: Tensor
    teacher_logits: Tensor
    labels: Tensor


@torch.no_grad()
def predict(model: nn.Module, teacher: Callable[..., Any], batches: Iterable[dict[str, Tensor]]) -> Predictions:
    """Logits of the model and of its teacher, a callable as `BALoraModel.teacher_forward`, for all batches."""
    device = next(model.parameters()).device
    logits, taught, labels = [], [], []
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        with evaluation_mode(model):
            logits.append(model(**inputs).logits.float().cpu())
        taught.append(teacher(**inputs).logits.float().cpu())
        labels.append(batch["labels"].cpu())
    return Predictions(torch.cat(logits), torch.cat(taught), torch.cat(labels))


@torch.no_grad()
def class_probabilities(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """What a classifier says of single texts, `(N, D)`, rows summing to 1.

    Args:
        model: The classifier.
        tokenizer: Its own.
        texts: N texts.
        max_length: Tokens that a text is cut to; `None` cuts nothing.
        batch_size: Texts at a time, those of like length together.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    p = np.empty((len(texts), model.config.num_labels))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        inputs = tokenizer(
            [texts[i] for i in part],
            padding=True,
            truncation=max_length is not None,
            max_length=max_length,
            return_tensors="pt",
        )
        with evaluation_mode(model):
            logits = model(**inputs.to(model.device)).logits
        p[part] = logits.double().softmax(-1).cpu().numpy()
    return p


def classification_metrics(logits: np.ndarray, labels: np.ndarray, *, minority: int | None = None) -> dict[str, float]:
    """Scores of predictions.

    Args:
        logits: `(N, D)`; D = 1 is a regression.
        labels: `(N,)`.
        minority: The class that `minority_recall` is of, such as the scarcest in training; by default the class with
            the fewest examples among `labels`, the larger id on a tie.

    Returns:
        `accuracy`; `f1`, of class 1 where there are two classes (as GLUE has it) and the unweighted mean over classes
        where there are more; `matthews`, the correlation of predicted and true classes; `minority_recall`, the recall
        of the minority. In regression `pearson` and `spearman`, 0 for constant predictions.
    """
    if logits.shape[-1] == 1:
        predictions = logits[:, 0]
        if np.ptp(predictions) == 0:
            return {"pearson": 0.0, "spearman": 0.0}
        return {
            "pearson": float(pearsonr(predictions, labels).statistic),
            "spearman": float(spearmanr(predictions, labels).statistic),
        }
    return class_scores(logits.argmax(-1), labels, logits.shape[-1], minority=minority)


def scarcest_class(labels: np.ndarray) -> int:
    """The class with the fewest examples among `labels` `(N,)`, the larger id on a tie."""
    present, counts = np.unique(labels, return_counts=True)
    return int(present[::-1][counts[::-1].argmin()])


def class_scores(
    predictions: np.ndarray, labels: np.ndarray, classes: int, *, minority: int | None = None
) -> dict[str, float]:
    """As `classification_metrics`, of predicted class ids `(N,)`; −1 is no class, and a wrong answer."""
    present = np.unique(labels)
    if minority is None:
        minority = scarcest_class(labels)
    recall = float(recall_score(labels, predictions, labels=[minority], average="macro", zero_division=0))
    # Among more than two classes F1 is a mean over those there are, of which "no class" is none.
    scored = [1] if classes == 2 else sorted({*present, *predictions} - {-1})
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1": float(f1_score(labels, predictions, labels=scored, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predictions)),
        "minority_recall": recall,
    }
