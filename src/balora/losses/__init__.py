"""The mathematics: pure functions of tensors, one idea per file.

Every function takes logits of shape `(..., V)` and returns a scalar. They hold no state, know nothing of models or
adapters, and are the oracle against which every faster path is tested.
"""

from balora.losses.consistency import consistency_loss
from balora.losses.diversity import covariance_diversity_loss, topk_entropy_loss
from balora.losses.spectral import spectral_loss

__all__ = ["consistency_loss", "covariance_diversity_loss", "spectral_loss", "topk_entropy_loss"]
