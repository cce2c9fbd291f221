"""The task type of a model, by its class."""

from peft import TaskType
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from balora.errors import BALoraError

_CLASSES = {
    TaskType.CAUSAL_LM: auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    TaskType.SEQ_2_SEQ_LM: auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    TaskType.SEQ_CLS: auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}


def task_of(model: PreTrainedModel) -> TaskType:
    """Return the PEFT task type of a Transformers model, by its class.

    Raises:
        BALoraError: If neither the class nor a class that it derives from belongs to a supported task.
    """
    ancestry = {cls.__name__ for cls in type(model).__mro__}
    for task_type, names in _CLASSES.items():
        if task_type == TaskType.SEQ_2_SEQ_LM and not model.config.is_encoder_decoder:
            continue  # Transformers lists audio decoders (Qwen2-Audio) there too
        if ancestry & {name for entry in names.values() for name in ([entry] if isinstance(entry, str) else entry)}:
            return task_type
    raise BALoraError(
        f"{type(model).__name__} is neither a causal language model nor a sequence classifier nor a sequence-to-"
        "sequence model; load it with AutoModelForCausalLM, AutoModelForSeq2SeqLM or "
        "AutoModelForSequenceClassification, or name task_type in the configuration"
    )
