"""Calibration: weights that give each regularizer a set share of the task's gradient (BA-LoRA, appendix D.1).

The paper scales each λ on a calibration batch so that the norm of its gradient is a set fraction of the task's, keeps
the ratios, and searches one common factor. The gradients are those of the model's own objective, one term at a time.

Calibrate after some steps on the task alone: at the start the student equals the teacher, so consistency has no
gradient, and a fresh classifier's logits hardly differ, while covariance's gradient grows as their cube.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.model.regularizers import TERMS, turned_off
from balora.utils.modules import evaluation_mode

#: The common factors in the paper's search.
FACTORS = (0.5, 1.0, 2.0)

#: Share of the task's gradient up to which a term's gradient counts as zero: rounding (8e-5 at DoRA's start in
#: bfloat16), or a term so near its extreme that a weight in the hundreds would overshoot as soon as it moves.
NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class Calibration:
    """Measured gradient norms and the weights that follow from them.

    Attributes:
        norms: Norm of the gradient of `task` and of each unweighted term.
        fractions: Share of the task's norm that each term should have.
        present: The configuration's weights, at full schedule.
        weights: The weights that give the fractions; `None` where the term has no gradient.
        reasons: The reason for each `None`.
    """

    norms: dict[str, float]
    fractions: dict[str, float]
    present: dict[str, float]
    weights: dict[str, float | None]
    reasons: dict[str, str]

    def settings(self, factor: float = 1.0) -> dict[str, float]:
        """Return the weights found times the common factor, to three digits, by the name of their setting."""
        found = {name: weight for name, weight in self.weights.items() if weight is not None}
        return {TERMS[name].weight: float(f"{factor * weight:.3g}") for name, weight in found.items()}


def default_fractions() -> dict[str, float]:
    """Return the terms that calibration measures, and the share of the task's gradient that each should have."""
    return {name: term.fraction for name, term in TERMS.items() if term.fraction is not None}


def calibrate(
    model: BALoraModel, batches: Iterable[dict[str, Tensor]], fractions: Mapping[str, float] | None = None
) -> Calibration:
    """Measure the gradients on these batches, and find the weights: `gradient_norms`, then `calibrated_weights`."""
    fractions = default_fractions() if fractions is None else dict(fractions)
    norms = gradient_norms(model, batches)
    weights = calibrated_weights(norms, fractions)
    present = {name: getattr(model.balora_config, TERMS[name].weight) for name in default_fractions()}
    reasons = {name: TERMS[name].no_gradient for name, weight in weights.items() if weight is None}
    return Calibration(norms, fractions, present, weights, reasons)


def gradient_norms(model: BALoraModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Measure the gradient norm of the task loss and of each unweighted regularizer, over trainable parameters.

    The batches are the micro-batches of one step: the task loss is a mean over all their labels, consistency and
    entropy over all their tokens, and covariance and spectral share, functions of a micro-batch's own matrix, are
    averaged over them. So batches should have the size used in training.

    Dropout is off, and gradient checkpointing too, which Transformers ties to training mode. The model's state is
    restored, `.grad` included (a teacher cache keeps new entries), and no random number is drawn.

    Args:
        model: The adapted model.
        batches: Model inputs as tensors, `labels` among them; moved to the model's device.

    Returns:
        Norms for `task` and each term that calibration measures; 0 where the task has no such term.

    Raises:
        BALoraError: If no label or no trainable parameter exists, or a gradient is not finite.
    """
    batches = [{k: v.to(model.device) for k, v in batch.items() if isinstance(v, Tensor)} for batch in batches]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise BALoraError("calibration: no parameter of the model is trainable; load it with is_trainable=True")
    if not all("labels" in batch for batch in batches):
        raise BALoraError("calibration: a batch has no labels; give batches as in training")
    counts = [model.counts_of(batch, batch["labels"]) for batch in batches]
    items, tokens = sum(int(count.items) for count in counts), sum(int(count.tokens) for count in counts)
    if not items:
        raise BALoraError("calibration: the batches hold no label; give at least one batch of training rows")
    norms = {"task": _norm(_gradient(model, batches, None, torch.tensor(items), tokens))}
    # Divided by infinitely many items the cross-entropy is exactly 0, so only the losses that the base model adds by
    # itself (a router's auxiliary loss) have to be subtracted from a term; most models add none.
    infinite = torch.tensor(math.inf)
    added = _gradient(model, batches, None, infinite, tokens)
    for term in default_fractions():
        gradient = _gradient(model, batches, term, infinite, tokens)
        norms[term] = _norm([g - a for g, a in zip(gradient, added, strict=True)])
    broken = [name for name, norm in norms.items() if not math.isfinite(norm)]
    if broken:
        raise BALoraError(f"calibration: the gradient of {broken[0]} is not finite; look for a bad row or weight")
    return norms


def calibrated_weights(
    norms: Mapping[str, float], fractions: Mapping[str, float] | None = None
) -> dict[str, float | None]:
    """Compute λ_i = fraction_i · ‖g_task‖ / ‖g_i‖, so that the norm of λ_i·g_i is that fraction of the task's.

    Args:
        norms: From `gradient_norms`.
        fractions: Share for each term to calibrate; 0 turns a term off. `None` for the default ones.

    Returns:
        Each term's weight; `None` where it has no gradient to scale (`NEGLIGIBLE`).

    Raises:
        BALoraError: If a fraction is out of range or of an unknown term, or the task has no gradient.
    """
    fractions = default_fractions() if fractions is None else fractions
    for name, fraction in fractions.items():
        if name not in default_fractions():
            raise BALoraError(f"fractions: unknown term {name!r}; use {', '.join(default_fractions())}")
        if not 0 <= fraction < math.inf:
            raise BALoraError(f"fractions: {fraction} for {name} is out of range; use 0 (off) or a positive number")
    task = norms["task"]
    if task == 0:
        raise BALoraError("calibration: the task's gradient is 0; use batches that the model still has to learn")
    return {
        name: 0.0 if fraction == 0 else None if norms[name] <= NEGLIGIBLE * task else fraction * task / norms[name]
        for name, fraction in fractions.items()
    }


def _gradient(
    model: BALoraModel, batches: list[dict[str, Tensor]], term: str | None, items: Tensor, tokens: int
) -> list[Tensor]:
    """Return the objective's gradient with λ = 1 for `term` and 0 for the others, by trainable parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in parameters]
    with _weighing_only(model, term):
        for batch in batches:
            loss = model(**batch, num_items_in_batch=items, num_tokens_in_batch=tokens).loss
            # Where one of these losses is exactly 0 it is at an extreme or constant: its gradient is 0.
            if loss != 0:
                gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
                total = [sum_ + g for sum_, g in zip(total, gradient, strict=True)]
    return total


@contextmanager
def _weighing_only(model: BALoraModel, term: str | None) -> Iterator[None]:
    """Context manager: set λ to 1 for this term and 0 for all others, teach every sequence, turn dropout off."""
    config = model.balora_config
    weights = turned_off() | ({} if term is None else {TERMS[term].weight: 1.0})
    constant = {one.schedule: "constant" for one in TERMS.values() if one.schedule is not None}
    training = model.training
    model.balora_config = replace(config, **weights, **constant, sample_rate=1.0)
    try:
        with evaluation_mode(model):
            model.training = True  # only on this module, whose forward then computes the objective
            yield
    finally:
        model.training = training
        model.balora_config = config


def _norm(gradient: list[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(g).item() for g in gradient))
