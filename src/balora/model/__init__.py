"""The model: an adapted one whose training forward also holds the teacher pass and the objective.

`build` makes it. `base` has what all tasks share; `causal_lm`, `seq_2_seq_lm` and `sequence_classification` have one
task each, the first two over `generation`. `terms` holds the regularizers of a batch, `schedule` their weights over
training, `calibration` finds weights that suit a task, and `drift` measures the distance from the pretrained model.
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
