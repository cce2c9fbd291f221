"""Sequence-to-sequence language models (T5, BART): the logits at a position predict the label there.

The decoder's inputs are the labels shifted by the model's own rule, so that student and teacher can run without
labels. Tokens without a label are the decoder's padding, which the encoder's mask does not cover; the others are
regularized.
"""

from typing import Any

from peft import PeftModelForSeq2SeqLM, TaskType
from torch import Tensor

from balora.model.generation import BALoraModelForGeneration
from balora.utils.batches import with_decoder_inputs


class BALoraModelForSeq2SeqLM(BALoraModelForGeneration, PeftModelForSeq2SeqLM, task_type=TaskType.SEQ_2_SEQ_LM):
    """A sequence-to-sequence language model with an adapter and the generation objective."""

    shift = 0

    def teacher_forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        """Run `BALoraModel.teacher_forward`, with the decoder's inputs from the labels where these are given."""
        if labels is not None:
            kwargs = with_decoder_inputs(self, kwargs, labels)
        return super().teacher_forward(*args, **kwargs)

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        return with_decoder_inputs(self, inputs, labels)

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        return labels != -100
