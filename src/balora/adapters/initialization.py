"""The residual methods' starts: the adapter takes part of each weight, the base keeps the rest.

PiSSA takes the principal components, MiLoRA the minor ones, OLoRA the leading part of a QR decomposition. PEFT has the
first and the last, but draws PiSSA's randomized SVD from the global generator and repeats either start on reload; here
it is seeded, takes experts one by one, and its factors are also what the teacher is made of
(`balora.adapters.teacher`). CorDA's are here too; `balora.adapters.data_initialization` has what it and LoRA-GA read
from data.
"""

from typing import Literal

import torch
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from balora.adapters.matrices import adapted_matrices
from balora.errors import BALoraError
from balora.utils.linalg import leading_svd

#: Seconds before the start's progress is shown.
SHOWN_AFTER = 2.0


def principal_factors(
    weight: Tensor, r: int, *, scaling: float = 1.0, niter: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Factors of the best rank-r approximation of a weight: scaling·B·A with A `(r, in)`, B `(out, r)`.

    A = √(S/scaling)·Vᵀ and B = U·√(S/scaling) (PiSSA, Meng et al. 2024, equations 2 and 3).

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank. Beyond min(out, in) there are no components and fewer rows come back.
        scaling: The adapter's scaling, α/r.
        niter: See `balora.utils.linalg.leading_svd`.
        seed: See `balora.utils.linalg.leading_svd`.
    """
    return _balanced(*leading_svd(_exact(weight), min(r, *weight.shape), niter=niter, seed=seed), scaling)


def minor_factors(weight: Tensor, r: int, *, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Factors of a weight's r smallest singular components: scaling·B·A with A `(r, in)`, B `(out, r)`.

    A = √(S/scaling)·Vᵀ and B = U·√(S/scaling) of the last r triplets (MiLoRA, Wang et al. 2024).

    No randomized method finds the smallest components, so this is the exact decomposition: its cost grows as
    out·in·min(out, in), and no seed enters. A component whose singular value is 0 starts with its row of A and its
    column of B at 0 and so cannot learn; trained weights have none that small.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank. Beyond min(out, in) there are no components and fewer rows come back.
        scaling: The adapter's scaling, α/r.
    """
    kept = min(r, *weight.shape)
    u, s, vh = torch.linalg.svd(_exact(weight), full_matrices=False)
    return _balanced(u[:, -kept:], s[-kept:], vh[-kept:], scaling)


def oriented_factors(
    weight: Tensor,
    covariance: Tensor,
    r: int,
    *,
    scaling: float = 1.0,
    corda_method: Literal["ipm", "kpm"] = "ipm",
) -> tuple[Tensor, Tensor]:
    """Factors of r of a weight's components as its inputs weigh them: A `(r, in)`, B `(out, r)`.

    With W·C = U·S·Vᵀ the weight is U·S·(Vᵀ·C⁻¹); of the components taken, A = √(S/scaling)·Vᵀ·C⁻¹ and
    B = U·√(S/scaling) (CorDA, Yang et al. 2024). So that C has an inverse, a hundredth of its mean diagonal
    is added to its diagonal, and doubled until the inverse holds, as in the authors' code and PEFT's.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        covariance: C `(in, in)`, of the inputs, up to a factor.
        r: Rank. Beyond min(out, in) there are no components and fewer rows come back.
        scaling: The adapter's scaling, α/r.
        corda_method: `ipm` takes the first components, `kpm` the last.
    """
    weight = _exact(weight)
    covariance, identity = covariance.to(weight), torch.eye(len(covariance)).to(weight)
    share = 0.01
    while True:
        damped = covariance + share * covariance.diagonal().mean() * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < 0.05:
            break
        share *= 2
    u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    kept = min(r, len(s))
    part = slice(kept) if corda_method == "ipm" else slice(-kept, None)
    return _balanced(u[:, part], s[part], vh[part] @ inverse, scaling)


def _balanced(u: Tensor, s: Tensor, vh: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """A `(r, in)` and B `(out, r)` of singular triplets, each with the root of the values."""
    root = (s / scaling).sqrt()
    return root[:, None] * vh, u * root


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def orthonormal_factors(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Factors of a weight's leading QR part: B·A with A `(r, in)`, B `(out, r)` of orthonormal columns.

    With W = QR, B = Q[:, :r] and A = R[:r] (OLoRA, Büyükakyüz 2024, algorithm 1). As in PEFT the scaling multiplies
    their product, so that scaling·B·A is what moves out of the base.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank. Beyond min(out, in) the decomposition ends and fewer rows come back.
    """
    q, upper = torch.linalg.qr(_exact(weight))
    return upper[:r], q[:, :r]


@torch.no_grad()
def start_residual(
    layers: dict[str, LoraLayer], adapter_name: str, method: str, *, niter: int | None, seed: int
) -> None:
    """Write each layer's starting factors into its adapter; the base weight is left as it is.

    One matrix at a time, where the weight is, or on a GPU where there is one: beside the model there is never more
    than one decomposition. Experts that share a parameter are split one by one. Shows progress when it takes longer
    than a moment.

    Rows beyond the weight's own rank keep PEFT's start (A random, B zero), so they add nothing and can still learn.

    Args:
        layers: The adapted layers by name.
        adapter_name: The adapter to start.
        method: `pissa`, `milora` or `olora`.
        niter: PiSSA's, see `principal_factors`.
        seed: PiSSA's, see `principal_factors`.

    Raises:
        BALoraError: If a targeted layer is neither a linear one nor experts.
    """
    for name, layer in logging.tqdm(layers.items(), desc=f"{method} start", unit="layer", delay=SHOWN_AFTER):
        if not isinstance(layer, ParamWrapper):
            linear_weight(name, layer, method)
        r, scaling = layer.r[adapter_name], layer.scaling[adapter_name]
        for matrix in adapted_matrices(layer, adapter_name):
            # A model that is to be spread over processes waits in the CPU's memory, where this would take hours.
            weight = matrix.weight.cuda() if torch.cuda.is_available() else matrix.weight
            if method == "olora":
                a, b = orthonormal_factors(weight, r)
            elif method == "milora":
                a, b = minor_factors(weight, r, scaling=scaling)
            else:
                a, b = principal_factors(weight, r, scaling=scaling, niter=niter, seed=seed)
            matrix.write_factors(a, b)


def linear_weight(name: str, layer: LoraLayer, method: str) -> Tensor:
    """The weight that a residual method splits, as `(out, in)` however the layer keeps it.

    Raises:
        BALoraError: If the layer is not a linear one.
    """
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):
        raise BALoraError(
            f"target_parameters: {method} starts from what linear layers see, and {layer.parameter_name} of {name} "
            "is none; leave it out, or use method='lora', 'pissa', 'olora' or 'milora'"
        )
    if not isinstance(layer, Linear) or not isinstance(base, (nn.Linear, Conv1D)):
        raise BALoraError(
            f"target_modules: {name} is a {type(base).__name__}; {method} splits linear layers only, "
            "leave it out or use method='lora'"
        )
    return base.weight.T if layer.fan_in_fan_out else base.weight


def freeze_down_projections(layers: dict[str, LoraLayer], adapter_name: str) -> None:
    """Freeze every A of an adapter (LoRA-FA, Zhang et al. 2023): changes of W then stay in the row space of A.

    PEFT's `set_adapter` sets A to train again; whoever calls it calls this after.

    Args:
        layers: The adapted layers by name.
        adapter_name: The adapter.

    Raises:
        BALoraError: If a layer is an embedding, whose A starts at zero, so that a B alone could learn nothing.
    """
    for name, layer in layers.items():
        if adapter_name not in layer.lora_A:
            raise BALoraError(
                f"target_modules: {name} is a {type(layer.get_base_layer()).__name__}, whose A starts at zero, and "
                "lora-fa never moves it; leave it out or use method='lora'"
            )
        layer.lora_A[adapter_name].requires_grad_(False)
