"""The geometry of the classes: the vector by which a classifier decides, how far it tells classes apart, a map of it.

The measures of BA-LoRA's study of imbalance (section 3.2.3, figure 3).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from peft import PeftModel
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.evaluation.classification import scarcest_class
from balora.teacher_cache.features import pooled_features, pooling_candidates
from balora.utils.modules import evaluation_mode
from balora.utils.tolerance import logits_match


def silhouettes(features: np.ndarray, labels: np.ndarray, *, minority: int | None = None) -> dict[str, float]:
    """How well features separate the classes: Rousseeuw's silhouette (b − a)/max(a, b) under the cosine distance.

    a is an example's mean distance to the others of its class, b the mean to the nearest other class. A zero vector
    has no direction and counts as orthogonal to all: at distance 1. A lone example of a class has silhouette 0.

    Args:
        features: `(N, d)`.
        labels: `(N,)`, class ids.
        minority: The minority class; by default the class with the fewest examples among `labels`, the larger id on a
            tie, as in `classification_metrics`.

    Returns:
        `silhouette`, the mean over all examples, and `silhouette_minority`, over the minority's; from −1 to 1. NaN
        where they are undefined: fewer than 2 classes, no more examples than classes, features that are not finite, no
        example of the minority.
    """
    present = np.unique(labels)
    if not 2 <= len(present) < len(labels) or not np.isfinite(features).all():
        return {"silhouette": np.nan, "silhouette_minority": np.nan}
    if minority is None:
        minority = scarcest_class(labels)
    # In float64, since fine-tuned features can lie within a narrow cone, where 1 − cos is a small difference.
    samples = silhouette_samples(np.asarray(features, dtype=np.float64), labels, metric="cosine")  # (N,)
    of_minority = samples[labels == minority]
    return {
        "silhouette": float(samples.mean()),
        "silhouette_minority": float(of_minority.mean()) if len(of_minority) else np.nan,
    }


def project(features: np.ndarray, *, perplexity: float = 30, iterations: int = 1000, seed: int = 42) -> np.ndarray:
    """A map `(N, 2)` of features `(N, d)` by t-SNE (scikit-learn's, Euclidean), with the paper's settings by default.

    Features that are all the same lie in one point, at zero.

    Args:
        features: `(N, d)`.
        perplexity: About how many neighbours an example has; at most a third of the other examples, as customary, so
            it is lowered to (N − 1)/3 where N is small.
        iterations: Steps of gradient descent, at least 250; the first 250 only gather what is near, so give more.
        seed: Of the start, which is a PCA by a randomized solver, so that it decides little.

    Raises:
        BALoraError: If there are fewer than 3 examples or 2 features.
    """
    if len(features) < 3 or features.shape[1] < 2:
        raise BALoraError(f"t-SNE needs at least 3 examples of 2 features; the features are {features.shape}")
    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2), dtype=np.float32)  # scikit-learn crashes the process on them
    perplexity = min(perplexity, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, max_iter=iterations, random_state=seed).fit_transform(features)


@torch.no_grad()
def final_representation(
    model: nn.Module, batches: Iterable[dict[str, Tensor]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The vector of each example that the backbone hands to the classification head, with what the head makes of it.

    The head is all of the model outside of its backbone (`base_model_prefix`). Where it is given all positions, the
    vector is that of the position it decides by (the first in RoBERTa and DeBERTa, the last token in a decoder): which
    one is found on the first batch, as the one that gives the model's logits when put in place of all others.

    Args:
        model: A Transformers sequence classifier, PEFT's or balora's model of one; left in the mode it was in.
        batches: Model inputs as tensors, with `labels`.

    Returns:
        Features `(N, d)`, logits `(N, D)` and labels `(N,)` of all batches.

    Raises:
        BALoraError: If the head decides by no one vector.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(model.parameters()).device
    features, logits, labels = [], [], []
    kind = None
    for batch in batches:
        inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
        with evaluation_mode(model), _entering_the_head(base) as entered:
            answer = model(**inputs).logits
        part, given = entered[0]
        kind = kind or _deciding_kind(model, base, part, given, answer, inputs)
        features.append(pooled_features(given, kind, inputs, base.config.pad_token_id).float().cpu())
        logits.append(answer.float().cpu())
        labels.append(batch["labels"].cpu())
    return torch.cat(features).numpy(), torch.cat(logits).numpy(), torch.cat(labels).numpy()


@contextmanager
def _entering_the_head(base: nn.Module) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Within, collects each part of the head that is called, in order, with what it is given."""
    entered: list[tuple[nn.Module, Tensor]] = []
    backbone = getattr(base, base.base_model_prefix)
    parts = [part for part in base.children() if part is not backbone]
    handles = [part.register_forward_pre_hook(lambda part, args: entered.append((part, args[0]))) for part in parts]
    try:
        yield entered
    finally:
        for handle in handles:
            handle.remove()


def _deciding_kind(
    model: nn.Module, base: nn.Module, part: nn.Module, given: Tensor, logits: Tensor, inputs: dict[str, Tensor]
) -> str:
    """Of the kinds of vector, the one that alone gives the head's logits."""
    if pooling_candidates(given) == ("pooled",):
        return "pooled"
    differences = {}
    for kind in pooling_candidates(given):
        vectors = pooled_features(given, kind, inputs, base.config.pad_token_id)
        alone = _logits_given(model, part, vectors.unsqueeze(1).expand_as(given), inputs)
        if logits_match(alone, logits):
            differences[kind] = (alone - logits).abs().max().item()
    if not differences:
        raise BALoraError(
            f"{type(base).__name__}: the head decides by no one vector (pooled, first position or last token), so "
            "there is no final representation to look at"
        )
    # In half precision both may agree; the right one then agrees best.
    return min(differences, key=differences.get)


def _logits_given(model: nn.Module, part: nn.Module, replaced: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The model's logits if that part of the head were given something else."""
    handle = part.register_forward_pre_hook(lambda _, args: (replaced, *args[1:]))
    try:
        with evaluation_mode(model):
            return model(**inputs).logits
    finally:
        handle.remove()
