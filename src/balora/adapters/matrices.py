"""Weight matrices that an adapter changes: one per linear layer, or one per expert of a mixture.

Transformers keeps a mixture's experts in one parameter, `(E, out, in)` or `(E, in, out)`, and PEFT's `ParamWrapper`
keeps the factors of all experts in one A and one B. A residual method splits each expert's matrix separately, so an
`AdaptedMatrix` holds views: writing to them changes the model.
"""

from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn


@dataclass(frozen=True)
class AdaptedMatrix:
    """A weight W and the factors of the change scaling·B·A that an adapter adds to it, as views into the model.

    Attributes:
        weight: W, `(out, in)`.
        a: A, `(r, in)`.
        b: B, `(out, r)`.
        scaling: The adapter's scaling.
        rounds: Whether the forward pass rounds A and B to the weight's precision.
    """

    weight: Tensor
    a: Tensor
    b: Tensor
    scaling: float
    rounds: bool = False

    @torch.no_grad()
    def write_factors(self, a: Tensor, b: Tensor) -> None:
        """Write A `(k, in)` and B `(out, k)` to the first k rows and columns; the rest of A is kept, of B set to 0."""
        if self.rounds:  # so that the base loses exactly what the adapter adds
            a, b = a.to(self.weight.dtype), b.to(self.weight.dtype)
        self.a[: len(a)] = a.to(self.a)
        self.b[:] = 0
        self.b[:, : len(a)] = b.to(self.b)

    @torch.no_grad()
    def add_product(self, sign: int) -> None:
        """Add the product to the weight (+1), or subtract it (−1), rounding once."""
        delta = self.scaling * (self.b @ self.a)  # (out, in)
        wide = torch.promote_types(self.weight.dtype, delta.dtype)
        self.weight.copy_(self.weight.to(wide) + sign * delta)


def adapted_parameter(layer: LoraLayer) -> nn.Parameter:
    """Return the base parameter that a layer's adapter changes."""
    return layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight


def expert_count(layer: LoraLayer) -> int:
    """Return the number of matrices whose factors a layer's A and B hold."""
    return layer.num_experts if isinstance(layer, ParamWrapper) else 1


def adapted_matrices(layer: LoraLayer, adapter_name: str) -> list[AdaptedMatrix]:
    """Return the matrices of a linear layer or of all experts, each with its factors.

    PEFT lays A out as `(E·r, in)`, expert by expert, and B as `(out, r·E)`, with the expert as the fastest index.
    """
    a, b = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
    weight, scaling = adapted_parameter(layer), layer.scaling[adapter_name]
    if not isinstance(layer, ParamWrapper):
        return [AdaptedMatrix(weight.T if layer.fan_in_fan_out else weight, a, b, scaling)]
    if weight.ndim == 2:
        return [AdaptedMatrix(weight, a, b, scaling, rounds=True)]
    experts = len(weight)
    weights = weight if layer._did_swap_in_out_features else weight.mT  # (E, out, in)
    a = a.view(experts, -1, a.shape[1])  # (E, r, in)
    b = b.view(len(b), -1, experts)  # (out, r, E)
    return [AdaptedMatrix(weights[e], a[e], b[..., e], scaling, rounds=True) for e in range(experts)]
