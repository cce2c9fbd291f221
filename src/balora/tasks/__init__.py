"""One file per task: what the student's loss is, which rows the regularizers see, how micro-batches weigh.

`generation` holds what causal and sequence-to-sequence models share. The terms are in `balora.objective`, the
published settings in `balora.config`.
"""

from peft import TaskType

from balora.model import BALoraModel
from balora.tasks.causal_lm import BALoraModelForCausalLM
from balora.tasks.recognise import task_of
from balora.tasks.seq_2_seq_lm import BALoraModelForSeq2SeqLM
from balora.tasks.sequence_classification import BALoraModelForSequenceClassification

MODEL_CLASSES: dict[str, type[BALoraModel]] = {
    TaskType.CAUSAL_LM: BALoraModelForCausalLM,
    TaskType.SEQ_2_SEQ_LM: BALoraModelForSeq2SeqLM,
    TaskType.SEQ_CLS: BALoraModelForSequenceClassification,
}

__all__ = ["MODEL_CLASSES", "task_of"]
