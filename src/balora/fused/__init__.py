"""The generation objective without logits: the same numbers as `balora.model.terms`, from hidden states and the head.

`head` takes the LM head out of the model's forward, `chunks` walks the tokens, `rows` turns a block of logits into its
gradient (`triton_rows` the same on a GPU), `spectrum` has the spectral term, and `generation` puts them together.
"""

from balora.fused.generation import Taught, fused_generation_loss
from balora.fused.head import Head, head_aside, head_of, router_loss, why_not_fused
from balora.fused.spectrum import HeadSpectrum

__all__ = [
    "Head",
    "HeadSpectrum",
    "Taught",
    "fused_generation_loss",
    "head_aside",
    "head_of",
    "router_loss",
    "why_not_fused",
]
