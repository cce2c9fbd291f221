"""Geometry of the classes: a classifier's final representation, its silhouettes, and its t-SNE map.

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
    """Return how well features separate the classes: Rousseeuw's silhouette (b − a)/max(a, b), cosine distance.

    a is an example's mean distance to the others of its class, b the mean to the nearest other class. A zero vector
    has distance 1 to everything. The only example of a class has silhouette 0.

    Args:
        features: `(N, d)`.
        labels: `(N,)`, class ids.
        minority: The minority class; by default the class with the fewest examples among `labels`, the larger id on a
            tie, as in `classification_metrics`.

    Returns:
        `silhouette`, the mean over all examples, and `silhouette_minority`, over those of the minority class; from −1
        to 1. NaN if undefined: fewer than 2 classes, as many classes as examples, features that are not finite, no
        example of the minority class.
    """
    present = np.unique(labels)
    if not 2 <= len(present) < len(labels) or not np.isfinite(features).all():
        return {"silhouette": np.nan, "silhouette_minority": np.nan}
    if minority is None:
        minority = scarcest_class(labels)
    # float64, since fine-tuned features can lie in a narrow cone, where 1 − cos is a small difference.
    samples = silhouette_samples(np.asarray(features, dtype=np.float64), labels, metric="cosine")  # (N,)
    of_minority = samples[labels == minority]
    return {
        "silhouette": float(samples.mean()),
        "silhouette_minority": float(of_minority.mean()) if len(of_minority) else np.nan,
    }


def project(features: np.ndarray, *, perplexity: float = 30, iterations: int = 1000, seed: int = 42) -> np.ndarray:
    """Project features `(N, d)` to a map `(N, 2)` by scikit-learn's Euclidean t-SNE; defaults are the paper's.

    Identical features all map to zero.

    Args:
        features: `(N, d)`.
        perplexity: Approximate number of neighbours of an example; reduced to (N − 1)/3 for small N, as is usual.
        iterations: Steps of gradient descent, at least 250; the first 250 are early exaggeration, so use more.
        seed: Seed of the initial PCA's randomized solver; it has little effect.

    Raises:
        BALoraError: If there are fewer than 3 examples or 2 features.
    """
    if len(features) < 3 or features.shape[1] < 2:
        raise BALoraError(f"t-SNE needs at least 3 examples of 2 features, not features of shape {features.shape}")
    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 2), dtype=np.float32)  # scikit-learn crashes the process on them
    perplexity = min(perplexity, (len(features) - 1) / 3)
    return TSNE(perplexity=perplexity, max_iter=iterations, random_state=seed).fit_transform(features)


@torch.no_grad()
def final_representation(
    model: nn.Module, batches: Iterable[dict[str, Tensor]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the vector of each example that the classification head decides by, with logits and labels.

    The head is everything outside of the backbone (`base_model_prefix`). If the head gets all positions, the vector is
    that of the position it uses (the first in RoBERTa and DeBERTa, the last token in a decoder). The first batch shows
    which: the position that gives the model's logits when it replaces all others.

    Args:
        model: A Transformers sequence classifier, PEFT's or balora's model of one; its training mode is
            unchanged.
        batches: Model inputs as tensors, with `labels`.

    Returns:
        Features `(N, d)`, logits `(N, D)` and labels `(N,)` of all batches.

    Raises:
        BALoraError: If the head does not use a single vector.
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
    """Context manager: collect the modules of the head in the order they are called, each with its input."""
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
    """Return the kind of vector that alone reproduces the head's logits."""
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
            f"{type(base).__name__}: the head does not use a single vector (pooled, first position or last token), "
            "so there is no final representation to measure"
        )
    # In half precision several may agree; the smallest difference is the right one.
    return min(differences, key=differences.get)


def _logits_given(model: nn.Module, part: nn.Module, replaced: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Return the model's logits with the input of that part of the head replaced."""
    handle = part.register_forward_pre_hook(lambda _, args: (replaced, *args[1:]))
    try:
        with evaluation_mode(model):
            return model(**inputs).logits
    finally:
        handle.remove()
