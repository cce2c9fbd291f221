"""The residual methods' starts: the adapter takes part of each weight, the base keeps the rest.

PiSSA takes the principal components, OLoRA the leading part of a QR decomposition. PEFT has both, but draws PiSSA's
randomized SVD from the global generator and repeats either start on reload; here it is seeded, and the factors are
also what the teacher is made of (`balora.adapters.teacher`).
"""

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from balora.errors import BALoraError
from balora.linalg import leading_svd

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
        niter: See `balora.linalg.leading_svd`.
        seed: See `balora.linalg.leading_svd`.
    """
    exact = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    u, s, vh = leading_svd(exact, min(r, *weight.shape), niter=niter, seed=seed)
    root = (s / scaling).sqrt()
    return root[:, None] * vh, u * root


def orthonormal_factors(weight: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Factors of a weight's leading QR part: B·A with A `(r, in)`, B `(out, r)` of orthonormal columns.

    With W = QR, B = Q[:, :r] and A = R[:r] (OLoRA, Büyükakyüz 2024, algorithm 1). As in PEFT the scaling multiplies
    their product, so that scaling·B·A is what moves out of the base.

    Args:
        weight: `(out, in)`, any float dtype; decomposed in at least float32.
        r: Rank. Beyond min(out, in) the decomposition ends and fewer rows come back.
    """
    q, upper = torch.linalg.qr(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)))
    return upper[:r], q[:, :r]


@torch.no_grad()
def start_residual(
    layers: dict[str, LoraLayer], adapter_name: str, method: str, *, niter: int | None, seed: int
) -> None:
    """Write each layer's starting factors into its adapter; the base weight is left as it is.

    One layer at a time, where the weight is: beside the model there is never more than a layer's decomposition. Shows
    progress when it takes longer than a moment.

    Rows beyond the weight's own rank keep PEFT's start (A random, B zero), so they add nothing and can still learn.

    Args:
        layers: The adapted layers by name.
        adapter_name: The adapter to start.
        method: One of `balora.config.RESIDUAL`.
        niter: PiSSA's, see `principal_factors`.
        seed: PiSSA's, see `principal_factors`.

    Raises:
        BALoraError: If a targeted layer is not a linear one.
    """
    for name, layer in logging.tqdm(layers.items(), desc=f"{method} start", unit="layer", delay=SHOWN_AFTER):
        base = layer.get_base_layer()
        if not isinstance(layer, Linear) or not isinstance(base, (nn.Linear, Conv1D)):
            raise BALoraError(
                f"target_modules: {name} is a {type(base).__name__}; {method} splits linear layers only, "
                "leave it out or use method='lora'"
            )
        weight = base.weight.T if layer.fan_in_fan_out else base.weight  # (out, in)
        r, scaling = layer.r[adapter_name], layer.scaling[adapter_name]
        if method == "olora":
            a, b = orthonormal_factors(weight, r)
        else:
            a, b = principal_factors(weight, r, scaling=scaling, niter=niter, seed=seed)
        layer.lora_A[adapter_name].weight[: len(a)] = a.to(layer.lora_A[adapter_name].weight)
        layer.lora_B[adapter_name].weight[:] = 0
        layer.lora_B[adapter_name].weight[:, : len(a)] = b.to(layer.lora_B[adapter_name].weight)
