"""Prompt tuning (Lester et al. 2021): PEFT's trained prompt before the input of a frozen model."""

from peft import PeftModel, PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from transformers import PreTrainedModel

from balora.adapters.new_modules import with_heads
from balora.errors import BALoraError
from balora.model.build import task_of


def make_prompt_tuning(model: PreTrainedModel, *, num_virtual_tokens: int = 20) -> PeftModel:
    """Add a trained prompt, initialized from embeddings of the vocabulary as in the paper, to a pretrained model.

    Args:
        model: A sequence-to-sequence model or a classifier; changed in place.
        num_virtual_tokens: Length of the prompt.

    Raises:
        BALoraError: If the model's task is not supported, or it is a causal language model.
    """
    task_type = task_of(model)
    if task_type == TaskType.CAUSAL_LM:
        raise BALoraError(
            "method: prompt-tuning gives a causal model's logits more positions than its labels have; use it with a "
            "sequence-to-sequence model or a classifier"
        )
    config = PromptTuningConfig(
        task_type=TaskType(task_type),
        num_virtual_tokens=num_virtual_tokens,
        prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        modules_to_save=with_heads(model, None) if task_type == TaskType.SEQ_CLS else None,
        num_transformer_submodules=1,  # the encoder: PEFT would also make a prompt for the decoder and never read it
    )
    return get_peft_model(model, config)
