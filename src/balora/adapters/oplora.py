"""OPLoRA (2510.13003): an adapter that cannot change a weight's leading singular triplets.

With U_k and V_k the k leading left and right singular vectors of W, the change of the weight is P_L·B·A·P_R, where
P_L = I − U_k·U_kᵀ and P_R = I − V_k·V_kᵀ. Then (W + ΔW)·V_k = W·V_k and U_kᵀ·(W + ΔW) = U_kᵀ·W, so that the k triplets
are singular triplets of the trained weight too. Projected are the factors whenever they are read: in the forward pass,
merged, and saved, so that the saved adapter is a plain LoRA.
"""

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from balora.adapters.initialization import exact, linear_weight
from balora.adapters.model_checks import check_weights_present
from balora.adapters.teacher import STUDENT
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.utils.linalg import leading_svd


class ProjectedLinear(nn.Linear):
    """Linear layer whose weight is read without its part in a subspace; the parameter itself keeps that part.

    Attributes:
        basis: Orthonormal columns that span the subspace, `(in, k)`, or `(out, k)` where `of_outputs`.
        of_outputs: Whether the subspace is of the outputs, so that P·W is read, and not W·P.
    """

    basis: Tensor
    of_outputs: bool

    @property
    def weight(self) -> Tensor:
        """Return the projected weight `(out, in)`."""
        stored = self._parameters["weight"]
        with torch.autocast(stored.device.type, enabled=False):
            basis = self.basis.to(stored.dtype)
            if self.of_outputs:
                return stored - basis @ (basis.T @ stored)
            return stored - (stored @ basis) @ basis.T

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()


@torch.no_grad()
def project_updates(layers: dict[str, LoraLayer], config: BALoraConfig) -> None:
    """Keep the adapters off the k leading singular triplets of their weights, from now on.

    Args:
        layers: The adapted layers by name.
        config: `oplora_k` is k.

    Raises:
        BALoraError: If a layer is not linear, its weight not whole here or of k singular values only, or the adapter
            changes more than the weight by a product (DoRA).
    """
    if config.use_dora:
        raise BALoraError("use_dora: DoRA rescales the rows of a weight, which oplora must not change; leave it out")
    check_weights_present(layers, "oplora")
    for name, layer in layers.items():
        weight = linear_weight(name, layer, "oplora")  # (out, in)
        if config.oplora_k >= min(weight.shape):
            raise BALoraError(
                f"oplora_k: {config.oplora_k} leaves nothing to learn in {name}, whose weight has "
                f"{min(weight.shape)} singular values; use fewer"
            )
        u, _, vh = leading_svd(exact(weight), config.oplora_k)
        for factor, basis in ((layer.lora_A[STUDENT], vh.T), (layer.lora_B[STUDENT], u)):
            factor.__class__ = ProjectedLinear
            factor.of_outputs = basis is u
            factor.register_buffer("basis", basis.contiguous(), persistent=False)
