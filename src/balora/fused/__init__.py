"""The generation objective from hidden states and the LM head, without holding all logits.

It gives the same numbers as `balora.model.regularizers`. `head` takes the LM head out of the model's forward, `chunks`
walks the tokens, `row_gradients` turns a block of logits into its gradient (`triton_row_gradients` does so on a GPU),
`token_terms` differentiates terms without a closed form, `spectrum` has the spectral term, and `generation` puts the
means over tokens together. Measurements need no gradient: `token_scores` is their pass over the head, and
`token_scorer` applies it to a model's batches.
"""

from balora.fused.chunks import teacher_head_logits
from balora.fused.generation import Taught, fused_token_loss
from balora.fused.head import Head, head_aside, head_of, router_loss, why_not_fused
from balora.fused.spectrum import HeadSpectrum
from balora.fused.token_scorer import Reader, TokenScorer, owner_of, teacher_reader
from balora.fused.token_scores import TokenScores, chunk_rows, logit_chunks, token_scores
from balora.fused.token_terms import TokenTerm

__all__ = [
    "Head",
    "HeadSpectrum",
    "Reader",
    "Taught",
    "TokenScorer",
    "TokenScores",
    "TokenTerm",
    "chunk_rows",
    "fused_token_loss",
    "head_aside",
    "head_of",
    "logit_chunks",
    "owner_of",
    "router_loss",
    "teacher_head_logits",
    "teacher_reader",
    "token_scores",
    "why_not_fused",
]
