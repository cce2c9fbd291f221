"""The loss functions: pure functions of tensors, one idea per file.

Losses of outputs take logits of shape `(..., V)`, losses of adapters their factors; each returns a scalar. They hold
no state, do not depend on models, and are the reference that every faster path is tested against.
"""

from balora.losses.alignment import alignment_loss
from balora.losses.bias_path import bias_path_loss, counterfactual_direction
from balora.losses.consistency import consistency_loss
from balora.losses.dft import dft_loss
from balora.losses.diversity import covariance_diversity_loss, topk_entropy_loss
from balora.losses.semantic import semantic_loss
from balora.losses.spectral import spectral_loss

__all__ = [
    "alignment_loss",
    "bias_path_loss",
    "consistency_loss",
    "counterfactual_direction",
    "covariance_diversity_loss",
    "dft_loss",
    "semantic_loss",
    "spectral_loss",
    "topk_entropy_loss",
]
