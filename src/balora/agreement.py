"""Whether two ways to the same logits agree but for rounding: what the checks on a first batch ask."""

import torch
from torch import Tensor

#: Largest accepted difference, as a share of the largest logit: rounding in each precision, with room.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


def agree(logits: Tensor, expected: Tensor) -> bool:
    """Whether logits are the expected ones within the rounding of the latter's precision; never where one is NaN."""
    if logits.shape != expected.shape:
        return False
    difference = (logits - expected).abs().max()
    return bool(difference <= TOLERANCE[expected.dtype] * expected.abs().max())
