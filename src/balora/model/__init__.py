"""The model: an adapted one whose training forward also holds the teacher pass and the objective.

`build` builds it. `base` is the common base class; `causal_lm`, `seq_2_seq_lm` and `sequence_classification` have one
task each, the first two over `generation`. `regularizers` has the table of all regularizers and weights them,
`schedule` gives their weights over training, `anchor_term` computes the term with passes of its own, `calibration`
finds weights that suit a task, and `drift` measures the distance from the pretrained model.
"""

from balora.model.base import BALoraModel, BALoraOutput
from balora.model.build import get_balora_model
from balora.model.causal_lm import BALoraModelForCausalLM
from balora.model.seq_2_seq_lm import BALoraModelForSeq2SeqLM
from balora.model.sequence_classification import BALoraModelForSequenceClassification

__all__ = [
    "BALoraModel",
    "BALoraModelForCausalLM",
    "BALoraModelForSeq2SeqLM",
    "BALoraModelForSequenceClassification",
    "BALoraOutput",
    "get_balora_model",
]
