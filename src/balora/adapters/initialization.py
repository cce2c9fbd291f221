"""Initialization of the residual methods: the adapter takes part of each weight, the base keeps the rest.

PiSSA takes the principal components, MiLoRA the minor ones, OLoRA the leading part of a QR decomposition, CorDA
components weighted by the inputs' covariance (which `balora.adapters.data_initialization` collects). PEFT has PiSSA
and OLoRA too, but draws PiSSA's randomized SVD from the global generator and repeats both on reload. Here the SVD is
seeded, experts are decomposed one by one, and the factors also make up the teacher (`balora.adapters.teacher`).
"""

from functools import partial
from typing import Literal

import torch
from peft.tuners.lora import Linear, LoraLayer, ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from balora.adapters.matrices import AdaptedMatrix, adapted_matrices
from balora.errors import BALoraError
from balora.utils.linalg import exact_svd, leading_svd, svd_bytes
from balora.utils.progress import tracked
from balora.utils.threads import map_in_threads

#: Seconds before the progress bar of an initialization is shown.
PROGRESS_BAR_DELAY = 2.0


def pissa_factors(
    weight: Tensor, r: int, *, scaling: float = 1.0, niter: int | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Compute PiSSA's factors A `(r, in)`, B `(out, r)`: scaling·B·A is the best rank-r approximation of a weight.

    A = √(S/scaling)·Vᵀ and B = U·√(S/scaling) (PiSSA, Meng et al. 2024, equations 2 and 3).

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank; at most min(out, in) rows are returned.
        scaling: The adapter's scaling, α/r.
        niter: See `balora.utils.linalg.leading_svd`.
        seed: See `balora.utils.linalg.leading_svd`.
    """
    return _balanced(*leading_svd(exact(weight), min(r, *weight.shape), niter=niter, seed=seed), scaling)


def milora_factors(weight: Tensor, r: int, *, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute MiLoRA's factors A `(r, in)`, B `(out, r)`: scaling·B·A is a weight's r smallest singular components.

    A = √(S/scaling)·Vᵀ and B = U·√(S/scaling) of the last r triplets (MiLoRA, Wang et al. 2024).

    No randomized method finds the smallest components, so this is an exact SVD without a seed; its cost grows as
    out·in·min(out, in). A component whose singular value is 0 would start with zero factors and could not learn;
    trained weights have none.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank; at most min(out, in) rows are returned.
        scaling: The adapter's scaling, α/r.
    """
    kept = min(r, *weight.shape)
    return _balanced(*exact_svd(exact(weight), slice(-kept, None)), scaling)


def corda_factors(
    weight: Tensor,
    covariance: Tensor,
    r: int,
    *,
    scaling: float = 1.0,
    corda_method: Literal["ipm", "kpm"] = "ipm",
) -> tuple[Tensor, Tensor]:
    """Compute CorDA's factors A `(r, in)`, B `(out, r)`: r of a weight's covariance-weighted components.

    With W·C = U·S·Vᵀ the weight is U·S·(Vᵀ·C⁻¹); for the r components chosen, A = √(S/scaling)·Vᵀ·C⁻¹ and
    B = U·√(S/scaling) (CorDA, Yang et al. 2024). To make C invertible, 1 % of its mean diagonal is added to its
    diagonal, and doubled until C⁻¹ is accurate, as in the authors' code and PEFT's.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        covariance: C `(in, in)` of the layer's inputs, up to a factor.
        r: Rank; at most min(out, in) rows are returned.
        scaling: The adapter's scaling, α/r.
        corda_method: `ipm` takes the leading components, `kpm` the trailing ones.
    """
    weight = exact(weight)
    covariance, identity = covariance.to(weight), torch.eye(len(covariance)).to(weight)
    share = 0.01
    while True:
        damped = covariance + share * covariance.diagonal().mean() * identity
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, identity) < 0.05:
            break
        share *= 2
    kept = min(r, *weight.shape)
    u, s, vh = exact_svd(weight @ damped, slice(kept) if corda_method == "ipm" else slice(-kept, None))
    return _balanced(u, s, vh @ inverse, scaling)


def null_factors(weight: Tensor, covariance: Tensor, r: int, *, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute LoRA-Null's factors A `(r, in)`, B `(out, r)`: the weight on the directions that inputs use least.

    With N `(in, r)` the eigenvectors of the r smallest eigenvalues of C and W·N·Nᵀ = U·S·Vᵀ, A = √(S/scaling)·Vᵀ and
    B = U·√(S/scaling) (LoRA-Null, Tang et al. 2025, section 3). Rows of A span N, so an adapter with A frozen adds
    nothing to inputs without a part in N.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        covariance: C `(in, in)` of the layer's inputs, up to a factor.
        r: Rank; at most min(out, in) rows are returned.
        scaling: The adapter's scaling, α/r.
    """
    kept = min(r, *weight.shape)
    # In float64, because the smallest eigenvalues are far below float32's rounding of the largest.
    null = torch.linalg.eigh(covariance.double()).eigenvectors[:, :kept].to(exact(weight))  # (in, r)
    u, s, vh = torch.linalg.svd(exact(weight) @ null, full_matrices=False)
    return _balanced(u, s, vh @ null.T, scaling)


def _balanced(u: Tensor, s: Tensor, vh: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """Return A `(r, in)` and B `(out, r)` of singular triplets, each scaled by the root of the singular values."""
    root = (s / scaling).sqrt()
    return root[:, None] * vh, u * root


def exact(weight: Tensor) -> Tensor:
    """Return the weight detached and in at least float32."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def olora_factors(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Compute OLoRA's factors A `(r, in)`, B `(out, r)`: the leading QR part of a weight, B orthonormal.

    With W = QR, B = Q[:, :r] and A = R[:r] (OLoRA, Büyükakyüz 2024, algorithm 1). As in PEFT, scaling·B·A is
    what is subtracted from the base.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank; at most min(out, in) rows are returned.
    """
    q, upper = torch.linalg.qr(exact(weight))
    return upper[:r], q[:, :r]


@torch.no_grad()
def initialize_residual(
    layers: dict[str, LoraLayer], adapter_name: str, method: str, *, niter: int | None, seed: int
) -> None:
    """Write each layer's initial factors into its adapter; the base weight is unchanged.

    Each of torch's threads decomposes a matrix, or a GPU one at a time if there is one, experts' matrices too, so that
    memory holds few decompositions beside the model. A progress bar appears if it takes longer than
    `PROGRESS_BAR_DELAY`.

    Rows beyond the weight's rank keep PEFT's initialization (A random, B zero): they add nothing and can still learn.

    Args:
        layers: The adapted layers by name.
        adapter_name: The adapter to initialize.
        method: `pissa`, `milora` or `olora`.
        niter: For PiSSA, see `pissa_factors`.
        seed: For PiSSA, see `pissa_factors`.

    Raises:
        BALoraError: If a targeted layer is neither linear nor experts.
    """
    for name, layer in layers.items():
        if not isinstance(layer, ParamWrapper):
            linear_weight(name, layer, method)
    matrices = [
        (matrix, layer.r[adapter_name])
        for layer in layers.values()
        for matrix in adapted_matrices(layer, adapter_name)
    ]
    if not matrices:
        return
    compute = partial(_factors, method=method, niter=niter, seed=seed)
    if torch.cuda.is_available():
        factors = map(compute, matrices)
    else:
        factors = map_in_threads(compute, matrices, max(svd_bytes(matrix.weight) for matrix, _ in matrices))
    bar = logging.tqdm(factors, desc=f"{method} start", total=len(matrices), unit="matrix", delay=PROGRESS_BAR_DELAY)
    done = tracked(bar, f"initializing {method}", total=len(matrices))
    for (matrix, _), (a, b) in zip(matrices, done, strict=True):
        matrix.write_factors(a, b)


def _factors(one: tuple[AdaptedMatrix, int], *, method: str, niter: int | None, seed: int) -> tuple[Tensor, Tensor]:
    matrix, r = one
    # A model that will be sharded is still in CPU memory, where the decomposition would take hours.
    weight = matrix.weight.cuda() if torch.cuda.is_available() else matrix.weight
    if method == "olora":
        return olora_factors(weight, r)
    if method == "milora":
        return milora_factors(weight, r, scaling=matrix.scaling)
    return pissa_factors(weight, r, scaling=matrix.scaling, niter=niter, seed=seed)


def linear_weight(name: str, layer: LoraLayer, method: str) -> Tensor:
    """Return the weight that a residual method splits, as `(out, in)` however the layer stores it.

    Raises:
        BALoraError: If the layer is not linear.
    """
    base = layer.get_base_layer()
    if isinstance(layer, ParamWrapper):
        raise BALoraError(
            f"target_parameters: {method} reads the inputs of linear layers, and {layer.parameter_name} of {name} has "
            "none; leave it out, or use method='lora', 'pissa', 'olora' or 'milora'"
        )
    if not isinstance(layer, Linear) or not isinstance(base, (nn.Linear, Conv1D)):
        raise BALoraError(
            f"target_modules: {name} is a {type(base).__name__}, and {method} splits linear layers only; "
            "leave it out or use method='lora'"
        )
    return base.weight.T if layer.fan_in_fan_out else base.weight
