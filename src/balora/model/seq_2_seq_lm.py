"""Sequence-to-sequence language models (T5, BART): logits stand where their labels do, and labelled tokens count.

What the decoder reads comes from the labels, shifted by the model's own rule, so that student and teacher can run
without being given any. The decoder's padding is where there is no label; the encoder's mask says nothing of it.
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
        """As `BALoraModel.teacher_forward`; labels, if given, say what the decoder reads, as in the student."""
        if labels is not None:
            kwargs = with_decoder_inputs(self, kwargs, labels)
        return super().teacher_forward(*args, **kwargs)

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        return with_decoder_inputs(self, inputs, labels)

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        return labels != -100
