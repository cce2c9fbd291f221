"""New directions in the weights: intruder dimensions, which LoRA makes where full tuning does not.

Shuttleworth et al. (2024), "LoRA vs full fine-tuning: an illusion of equivalence", who find that they go with
forgetting. A left singular vector u' of the tuned weight, among its first k, is an intruder where no left singular
vector of the base weight is near it: max_i |⟨u', u_i⟩| < ε.
"""

import copy
from collections.abc import Iterator

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.audit.metrics import Metric, measured
from balora.audit.models import Audited
from balora.evaluation.metric import mean

#: Number of first singular vectors compared, and the cosine below which one is an intruder.
FIRST, NEAR = 10, 0.5


def measure_weights(audited: Audited, *, limit: int | None, seed: int = 0) -> list[Metric]:
    """Return `intruder_dimensions`, a mean over matrices, and `intruder_dimensions_by_matrix`.

    Args:
        audited: Two models.
        limit: At most so many matrices, evenly spread over the model; `None` for all.
        seed: Seed of the bootstrap.

    Returns:
        An empty list if no matrix was changed or none can be read (in 4 bits).
    """
    names = [name for name, *_ in _changed(audited)]
    if limit is not None and len(names) > limit:
        names = [names[i] for i in np.linspace(0, len(names) - 1, limit).round().astype(int)]
    chosen = set(names)
    layers = (layer for layer in _changed(audited) if layer[0] in chosen)
    counts = {name: intruder_dimensions(*_weights(base, tuned)) for name, base, tuned in layers}
    if not counts:
        return []
    each = [
        measured("intruder_dimensions_by_matrix", mean([count]), on=name, unit="matrices", seed=seed)
        for name, count in counts.items()
    ]
    return [measured("intruder_dimensions", mean([*counts.values()]), unit="matrices", seed=seed), *each]


def intruder_dimensions(base: Tensor, tuned: Tensor, *, first: int = FIRST, near: float = NEAR) -> int:
    """Count the first left singular vectors of the tuned weight that are near none of the base weight's.

    Args:
        base: `(out, in)`.
        tuned: `(out, in)`.
        first: k.
        near: ε, of the cosine.
    """
    left, _, _ = torch.linalg.svd(base.float(), full_matrices=False)  # (out, m)
    new, _, _ = torch.linalg.svd(tuned.float(), full_matrices=False)
    cosines = (new[:, :first].T @ left).abs()  # (k, m)
    return int((cosines.max(1).values < near).sum())


def _changed(audited: Audited) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield the linear layers that tuning changed: name, the base's layer, and the tuned or adapted one."""
    if isinstance(audited.tuned, PeftModel):
        beside = None if audited.beside is None else dict(audited.beside.named_modules())
        for name, module in audited.tuned.get_base_model().named_modules():
            if isinstance(module, BaseTunerLayer) and _is_dense(module.get_base_layer()):
                yield name, module.get_base_layer() if beside is None else beside[name], module
        return
    base = dict(audited.beside.named_modules())
    for name, module in audited.tuned.named_modules():
        # Heads of another size, added layers, and unchanged weights are not compared.
        if (
            _is_dense(module)
            and name in base
            and module.weight.shape == base[name].weight.shape
            and _differs(base[name], module)
        ):
            yield name, base[name], module


def _differs(base: nn.Module, tuned: nn.Module) -> bool:
    return not torch.equal(base.weight, tuned.weight)


def _weights(base: nn.Module, tuned: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weights before and after, `(out, in)`; an adapted layer's from a merged copy."""
    before = _weight(base).clone()
    if isinstance(tuned, BaseTunerLayer):
        tuned = copy.deepcopy(tuned)
        inner = tuned.get_base_layer()
        if inner.bias is None:  # without which PEFT merges no trained bias
            inner.bias = nn.Parameter(inner.weight.new_zeros(len(inner.weight)))
        tuned.merge()
        tuned = inner
    return before, _weight(tuned)


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) and module.weight.is_floating_point() and module.weight.ndim == 2


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight
