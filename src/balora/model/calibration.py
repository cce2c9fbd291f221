"""Calibration: weights that give each regularizer a set share of the task's gradient (BA-LoRA, appendix D.1).

The paper scales each λ on a calibration batch so that the norm of its gradient is a set fraction of the task's, keeps
the ratios, and searches one common factor. The gradients are those of the model's own objective, one term at a time.

Calibrate after some steps on the task alone: at the start the student is the teacher, so consistency has no gradient,
and a fresh classifier's logits hardly differ, while covariance's gradient grows as their cube.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.utils.modules import evaluation_mode

TERMS = ("consistency", "diversity", "spectral")
#: Weights of what is not calibrated, off while anything is.
UNMEASURED = dict.fromkeys(("semantic_weight", "bias_path_weight", "alignment_weight", "anchor_weight"), 0.0)

#: Norm of each term's weighted gradient, as a share of the task's. The paper sets fractions without printing them.
#: These stand as 5 : 1 : 1, as its weights do for both tasks, and are small: pulling all one way and doubled by the
#: search, the terms would still be less than a third of the task's gradient.
FRACTIONS = {"consistency": 0.1, "diversity": 0.02, "spectral": 0.02}

#: Common factors that the paper's search tries.
FACTORS = (0.5, 1.0, 2.0)

#: Share of the task's gradient up to which a term has none to scale: rounding (DoRA's start in bfloat16 reaches 8e-5),
#: or a term so near its extreme that a weight in the hundreds would overshoot as soon as it moves.
NEGLIGIBLE = 1e-4

WHY_NONE = {
    "consistency": "no gradient: the student still is the teacher; train some steps on the task alone first",
    "diversity": "no gradient: outputs hardly differ yet (train more steps first), or it is constant (a single "
    "output, one example in a batch)",
    "spectral": "no gradient: it is constant (a single output, one example in a batch, or spectral_k at or above the "
    "number of classes with clip_spectral_k off)",
}


@dataclass(frozen=True)
class Calibration:
    """What was measured and what follows from it.

    Attributes:
        norms: Norm of the gradient of `task` and of each unweighted term.
        fractions: Share of the task's norm that each term was to have.
        present: The configuration's weights, at full schedule.
        weights: The weights that give the fractions; `None` where the term has no gradient.
        reasons: Why, for each `None`.
    """

    norms: dict[str, float]
    fractions: dict[str, float]
    present: dict[str, float]
    weights: dict[str, float | None]
    reasons: dict[str, str]

    def settings(self, factor: float = 1.0) -> dict[str, float]:
        """The weights found, times the common factor, to three digits, by their names in recipe and configuration."""
        found = {name: weight for name, weight in self.weights.items() if weight is not None}
        return {f"{name}_weight": float(f"{factor * weight:.3g}") for name, weight in found.items()}


def calibrate(
    model: BALoraModel, batches: Iterable[dict[str, Tensor]], fractions: Mapping[str, float] = FRACTIONS
) -> Calibration:
    """Measure the gradients on these batches, and find the weights: `gradient_norms`, then `calibrated_weights`."""
    norms = gradient_norms(model, batches)
    weights = calibrated_weights(norms, fractions)
    present = {name: getattr(model.balora_config, f"{name}_weight") for name in TERMS}
    reasons = {name: WHY_NONE[name] for name, weight in weights.items() if weight is None}
    return Calibration(norms, dict(fractions), present, weights, reasons)


def gradient_norms(model: BALoraModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Norm of the gradient, in the trainable parameters, of the task loss and of each unweighted regularizer.

    The batches are the micro-batches of one step: the task loss is a mean over all their labels, consistency and
    entropy over all their tokens, and covariance and spectral share, functions of a micro-batch's own matrix, are
    averaged over them. So batches should be of the size that will be trained on.

    Dropout is off, and gradient checkpointing too, which Transformers ties to training mode. The model is left as it
    was, `.grad` included (a teacher cache keeps what it saw), and no random number is drawn.

    Args:
        model: The adapted model.
        batches: Model inputs as tensors, `labels` among them; moved to the model's device.

    Returns:
        For `task`, `consistency`, `diversity` and `spectral`; 0 where the task has no such term.

    Raises:
        BALoraError: If there is nothing labelled or nothing trainable, or a gradient is not finite.
    """
    batches = [{k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)} for batch in batches]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BALoraError("calibration: nothing of the model is trainable; load it with is_trainable=True")
    if not all("labels" in batch for batch in batches):
        raise BALoraError("calibration: a batch has no labels; give batches as training has them")
    counts = [model.counts_of(batch, batch["labels"]) for batch in batches]
    items, tokens = sum(int(count.items) for count in counts), sum(int(count.tokens) for count in counts)
    if not items:
        raise BALoraError("calibration: the batches hold no label; give at least one batch of training rows")
    norms = {"task": _norm(_gradient(model, batches, None, torch.tensor(items), tokens))}
    # Divided by infinitely many items the cross-entropy is exactly 0, so nothing has to be subtracted from a term but
    # what the base model adds to its loss by itself (a router's auxiliary loss), in most models nothing.
    infinite = torch.tensor(math.inf)
    added = _gradient(model, batches, None, infinite, tokens)
    for term in TERMS:
        gradient = _gradient(model, batches, term, infinite, tokens)
        norms[term] = _norm([g - a for g, a in zip(gradient, added, strict=True)])
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if broken:
        raise BALoraError(f"calibration: the gradient of {broken[0]} is not finite; look for a bad row or weight")
    return norms


def calibrated_weights(
    norms: Mapping[str, float], fractions: Mapping[str, float] = FRACTIONS
) -> dict[str, float | None]:
    """λ_i = fraction_i · ‖g_task‖ / ‖g_i‖: what makes the norm of λ_i·g_i that fraction of the task's.

    Args:
        norms: As `gradient_norms` gives them.
        fractions: Of the terms to calibrate; 0 turns one off.

    Returns:
        Each term's weight; `None` where it has no gradient to scale (`NEGLIGIBLE`).

    Raises:
        BALoraError: If a fraction is out of range or of an unknown term, or the task has no gradient.
    """
    for name, fraction in fractions.items():
        if name not in TERMS:
            raise BALoraError(f"fractions: unknown term {name!r}; there are {', '.join(TERMS)}")
        if not 0 <= fraction < math.inf:
            raise BALoraError(f"fractions: {fraction} for {name} is not a share; use 0 (off) or a positive number")
    task = norms["task"]
    if task == 0:
        raise BALoraError("calibration: the task's gradient is 0, so there is nothing to measure against")
    return {
        name: 0.0 if fraction == 0 else None if norms[name] <= NEGLIGIBLE * task else fraction * task / norms[name]
        for name, fraction in fractions.items()
    }


def _gradient(
    model: BALoraModel, batches: list[dict[str, Tensor]], term: str | None, items: Tensor, tokens: int
) -> list[Tensor]:
    """Of the objective with λ = 1 for `term` and 0 for the others, by trainable parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    with _weighing_only(model, term):
        for batch in batches:
            loss = model(**batch, num_items_in_batch=items, num_tokens_in_batch=tokens).loss
            # Each of these losses is at an extreme, or a constant, where it is exactly 0.
            if loss != 0:
                gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
                total = [sum_ + g for sum_, g in zip(total, gradient, strict=True)]
    return total


@contextmanager
def _weighing_only(model: BALoraModel, term: str | None) -> Iterator[None]:
    """Within, λ is 1 for this term and 0 for the others; the teacher sees every sequence, and nothing drops out."""
    config = model.balora_config
    weights = {f"{name}_weight": float(name == term) for name in TERMS}
    constant = {f"{name}_schedule": "constant" for name in TERMS}
    training = model.training
    model.balora_config = replace(config, **weights, **constant, **UNMEASURED, sample_rate=1.0)
    try:
        with evaluation_mode(model):
            model.training = True  # of this module alone: it asks for the objective
            yield
    finally:
        model.training = training
        model.balora_config = config


def _norm(gradient: list[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(g).item() for g in gradient))
