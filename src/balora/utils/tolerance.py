"""Comparison of logits up to the rounding error of their dtype."""

import torch
from torch import Tensor

#: Largest accepted difference relative to the largest logit, by precision: rounding error with a margin.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def logits_match(logits: Tensor, expected: Tensor) -> bool:
    """Return whether logits equal the expected ones within rounding of the latter's dtype; False for NaN."""
    if logits.shape != expected.shape:
        return False
    difference = (logits - expected).abs().max()
    return bool(difference <= TOLERANCE[expected.dtype] * expected.abs().max())
