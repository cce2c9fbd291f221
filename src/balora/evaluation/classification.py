"""Classification and regression: predictions of a model, and scikit-learn's metrics of them.

A sequence-to-sequence model writes the name of the class, or the number, and `predict_labels` parses it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, recall_score
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.evaluation.generation import write_texts
from balora.utils.modules import evaluation_mode
from balora.utils.progress import tracked


@dataclass(frozen=True)
class Predictions:
    """Predictions for a dataset: `logits` and `teacher_logits` `(N, D)`, `labels` `(N,)`."""

    logits: Tensor
    teacher_logits: Tensor
    labels: Tensor


@torch.no_grad()
def predict(model: nn.Module, teacher: Callable[..., Any], batches: Iterable[dict[str, Tensor]]) -> Predictions:
    """Return the logits of the model and of its teacher (such as `BALoraModel.teacher_forward`) for all batches."""
    device = next(model.parameters()).device
    logits, taught, labels = [], [], []
    for batch in tracked(batches, "predicting classes"):
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
    """Return a classifier's class probabilities for single texts, `(N, D)`.

    Args:
        model: The classifier.
        tokenizer: The model's.
        texts: N texts.
        max_length: Texts are truncated to this many tokens; `None`: no truncation.
        batch_size: Texts per batch; texts of similar length share a batch.
    """
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    p = np.empty((len(texts), model.config.num_labels))
    for start in tracked(range(0, len(order), batch_size), "predicting classes"):
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
    """Return the metrics of predictions.

    Args:
        logits: `(N, D)`; D = 1 is regression.
        labels: `(N,)`.
        minority: The class of `minority_recall`, such as the rarest in training; default: the class with the fewest
            examples among `labels`, the larger id on a tie.

    Returns:
        `accuracy`; `f1`, of class 1 with two classes (as in GLUE) and the unweighted mean over classes with more;
        `matthews`, the correlation of predicted and true classes; `minority_recall`, the recall
        of the minority class. For regression `pearson` and `spearman`, 0 for constant predictions.
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
    """Return the class with the fewest examples among `labels` `(N,)`, the larger id on a tie."""
    present, counts = np.unique(labels, return_counts=True)
    return int(present[::-1][counts[::-1].argmin()])


def class_scores(
    predictions: np.ndarray, labels: np.ndarray, classes: int, *, minority: int | None = None
) -> dict[str, float]:
    """Return `classification_metrics` of predicted class ids `(N,)`; −1 stands for no class and is always wrong."""
    present = np.unique(labels)
    if minority is None:
        minority = scarcest_class(labels)
    recall = float(recall_score(labels, predictions, labels=[minority], average="macro", zero_division=0))
    # With more than two classes F1 is a mean over those that occur; "no class" is not among them.
    scored = [1] if classes == 2 else sorted({*present, *predictions} - {-1})
    return {
        "accuracy": float(accuracy_score(labels, predictions)),
        "f1": float(f1_score(labels, predictions, labels=scored, average="macro", zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predictions)),
        "minority_recall": recall,
    }


#: Class id of a text that is not the name of a class.
UNPARSED = -1
#: Value of a text that is not a number, in regression.
UNPARSED_NUMBER = -1.0


def predict_labels(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    max_new_tokens: int = 16,
) -> np.ndarray:
    """Generate a text per row by greedy decoding and parse it as a class id or number.

    Args:
        model: A sequence-to-sequence model, adapted or not; left in the mode it was in.
        batches: See `write_texts`.
        tokenizer: The model's.
        label_names: Names by class id, as written in the targets; empty for regression.
        max_new_tokens: Maximum length of a text; must fit the longest name and the end-of-text token.

    Returns:
        `(N,)`: class ids, −1 if the text is not the name of a class; for regression numbers, NaN if it is not a
        number.
    """
    texts = write_texts(model, batches, tokenizer, max_new_tokens=max_new_tokens)
    if not label_names:
        return np.array([_number(text) for text in texts], dtype=np.float64)
    ids = {name.strip(): i for i, name in enumerate(label_names)}
    return np.array([ids.get(text.strip(), UNPARSED) for text in texts], dtype=np.int64)


def text_to_text_metrics(
    predictions: np.ndarray, labels: np.ndarray, label_names: list[str], *, minority: int | None = None
) -> dict[str, float]:
    """Return the metrics of `predict_labels`' predictions.

    Args:
        predictions: `(N,)`, from `predict_labels`.
        labels: `(N,)`, class ids or numbers.
        label_names: Names by class id; empty for regression.
        minority: See `classification_metrics`.

    Returns:
        The metrics of `classification_metrics`, and `unparsed`, the share of texts that were not a class or number.
        Such a text counts as a wrong answer in classification (with two classes, as the other one) and as −1 in
        regression (as in T5's own evaluation).
    """
    if not label_names:
        unparsed = np.isnan(predictions)
        scores = classification_metrics(np.where(unparsed, UNPARSED_NUMBER, predictions)[:, None], labels)
        return {**scores, "unparsed": float(unparsed.mean())}
    unparsed = predictions == UNPARSED
    if len(label_names) == 2:
        predictions = np.where(unparsed, 1 - labels, predictions)
    return {
        **class_scores(predictions, labels, len(label_names), minority=minority),
        "unparsed": float(unparsed.mean()),
    }


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
