"""Classification and regression by writing: the text a sequence-to-sequence model generates, read as an answer."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.evaluation.classification import class_scores, classification_metrics
from balora.utils.modules import evaluation_mode

#: Inputs that generation takes.
READ = ("input_ids", "attention_mask", "sentence_embeds")
#: Class id of a text that names no class.
UNPARSED = -1
#: What a text that is no number counts as in regression.
UNPARSED_NUMBER = -1.0


def predict_labels(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    label_names: list[str],
    max_new_tokens: int = 16,
) -> np.ndarray:
    """What the model writes for each row, by greedy decoding, as class ids or numbers.

    Args:
        model: A sequence-to-sequence model, adapted or not; left in the mode it was in.
        batches: See `write_texts`.
        tokenizer: The model's.
        label_names: Names by class id, as the targets have them; empty for regression.
        max_new_tokens: Longest text; the longest name's tokens and the end of text must fit in.

    Returns:
        `(N,)`: class ids, −1 where the text is no name of a class; in regression numbers, NaN where it is none.
    """
    texts = write_texts(model, batches, tokenizer, max_new_tokens=max_new_tokens)
    if not label_names:
        return np.array([_number(text) for text in texts], dtype=np.float64)
    ids = {name.strip(): i for i, name in enumerate(label_names)}
    return np.array([ids.get(text.strip(), UNPARSED) for text in texts], dtype=np.int64)


@torch.no_grad()
def write_texts(
    model: PreTrainedModel,
    batches: Iterable[dict[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
) -> list[str]:
    """What a sequence-to-sequence model writes for each row, by greedy decoding, without special tokens.

    Args:
        model: Adapted or not; left in the mode it was in.
        batches: Inputs with `input_ids` and `attention_mask`, each `(B, S)`, and SeLoRA's `sentence_embeds`; the rest
            is not used.
        tokenizer: The model's.
        max_new_tokens: Longest text.
    """
    device = next(model.parameters()).device
    texts: list[str] = []
    for batch in batches:
        inputs = {name: batch[name].to(device) for name in READ if name in batch}
        with evaluation_mode(model):
            # Limits that a model's own generation settings may hold would stand beside ours.
            written = model.generate(
                **inputs, max_new_tokens=max_new_tokens, max_length=None, min_length=0, do_sample=False, num_beams=1
            )  # (B, T)
        texts += tokenizer.batch_decode(written, skip_special_tokens=True)
    return texts


def text_to_text_metrics(
    predictions: np.ndarray, labels: np.ndarray, label_names: list[str], *, minority: int | None = None
) -> dict[str, float]:
    """Scores of what `predict_labels` read.

    Args:
        predictions: `(N,)`, from `predict_labels`.
        labels: `(N,)`, class ids or numbers.
        label_names: Names by class id; empty for regression.
        minority: See `classification_metrics`.

    Returns:
        What `classification_metrics` has, and `unparsed`, the share of texts that were no class or number. Such a text
        is a wrong answer in classification, the other class where there are two, and −1 in regression (as in T5's own
        evaluation).
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
