"""One file per task: what the student's loss is, which rows the regularizers see, how micro-batches weigh.

Sequence-to-sequence models join as a third file here, beside their terms in `balora.objective` and their published
settings in `balora.config`.
"""

from peft import TaskType

from balora.model import BALoraModel
from balora.tasks.causal_lm import BALoraModelForCausalLM
from balora.tasks.recognise import task_of
from balora.tasks.sequence_classification import BALoraModelForSequenceClassification

MODEL_CLASSES: dict[str, type[BALoraModel]] = {
    TaskType.CAUSAL_LM: BALoraModelForCausalLM,
    TaskType.SEQ_CLS: BALoraModelForSequenceClassification,
}

__all__ = ["MODEL_CLASSES", "task_of"]
