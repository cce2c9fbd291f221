"""A part of a batch: some of its examples."""

from typing import Any

from torch import Tensor


def select_examples(inputs: dict[str, Any], picked: Tensor) -> dict[str, Any]:
    """The batch's tensors at the examples picked, `(B,)` bool; what has no batch axis stays as it is."""
    if picked.all():
        return inputs
    return {
        name: value[picked] if isinstance(value, Tensor) and value.shape[:1] == picked.shape else value
        for name, value in inputs.items()
    }
