"""The mathematics: pure functions of tensors, one idea per file.

Those on outputs take logits of shape `(..., V)`, those on adapters their factors; all return a scalar. They hold no
state, know nothing of models, and are the oracle against which every faster path is tested.
"""

from balora.losses.alignment import alignment_loss
from balora.losses.consistency import consistency_loss
from balora.losses.diversity import covariance_diversity_loss, topk_entropy_loss
from balora.losses.semantic import semantic_loss
from balora.losses.spectral import spectral_loss

__all__ = [
    "alignment_loss",
    "consistency_loss",
    "covariance_diversity_loss",
    "semantic_loss",
    "spectral_loss",
    "topk_entropy_loss",
]
