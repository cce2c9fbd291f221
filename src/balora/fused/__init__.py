"""The generation objective from hidden states and the LM head, without holding all logits.

It gives the same numbers as `balora.model.regularizers`. `head` takes the LM head out of the model's forward, `chunks`
walks the tokens, `row_gradients` turns a block of logits into its gradient (`triton_row_gradients` does so on a GPU),
`token_terms` differentiates terms without a closed form, `spectrum` has the spectral term, and `generation` puts the
means over tokens together.
"""

from balora.fused.chunks import teacher_head_logits
from balora.fused.generation import Taught, fused_token_loss
from balora.fused.head import Head, head_aside, head_of, router_loss, why_not_fused
from balora.fused.spectrum import HeadSpectrum
from balora.fused.token_terms import TokenTerm

__all__ = [
    "Head",
    "HeadSpectrum",
    "Taught",
    "TokenTerm",
    "fused_token_loss",
    "head_aside",
    "head_of",
    "router_loss",
    "teacher_head_logits",
    "why_not_fused",
]
