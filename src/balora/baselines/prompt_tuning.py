"""Prompt tuning (Lester et al. 2021): PEFT's own, a trained prompt before a frozen model's input."""

from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.model.task_type import task_of


def make_prompt_tuning(model: PreTrainedModel, *, num_virtual_tokens: int = 20) -> PeftModel:
    """Put a trained prompt before a pretrained model's input; it starts as words of its vocabulary, as in the paper.

    Args:
        model: A sequence-to-sequence model or a classifier; changed in place.
        num_virtual_tokens: Length of the prompt.

    Raises:
        BALoraError: If the model's task is not supported, or is a causal language model's.
    """
    task_type = task_of(model)
    if task_type == TaskType.CAUSAL_LM:
        raise BALoraError(
            "method: prompt-tuning gives a causal model's logits more positions than its labels have; it is here for "
            "sequence-to-sequence models and classifiers"
        )
    config = PromptTuningConfig(
        task_type=TaskType(task_type),
        num_virtual_tokens=num_virtual_tokens,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        num_transformer_submodules=1,  # the encoder: PEFT also makes a decoder's half, which it never reads
    )
    return get_peft_model(model, config)
