"""Causal language models: the generation objective on next-token logits."""

from typing import Any

from peft import PeftModelForCausalLM
from torch import Tensor

from balora.model import BALoraModel
from balora.objective import generation_terms


class BALoraModelForCausalLM(BALoraModel, PeftModelForCausalLM):
    """A causal language model with an adapter and the generation objective."""

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `BALoraModel.teacher_forward`; nothing is generated, so no cache is filled unless asked for."""
        return super().teacher_forward(*args, **{"use_cache": False, **kwargs})

    def _student_forward(
        self, inputs: dict[str, Any], labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> tuple[Any, Tensor, Tensor | float]:
        # The model's own loss, so that what it adds (a router's auxiliary loss) stays. Dividing by at least one keeps
        # a micro-batch without labelled tokens at 0 instead of NaN.
        items = (labels[..., 1:] != -100).sum()
        total = items.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        inputs = {"use_cache": False, **inputs, "labels": labels, "num_items_in_batch": total}
        output = PeftModelForCausalLM.forward(self, **inputs)
        return output, output.loss, 1.0 if num_items_in_batch is None else items / total

    def _terms(
        self, logits: Tensor, teacher_logits: Tensor | None, attention_mask: Tensor | None, weights: dict[str, float]
    ) -> tuple[dict[str, Tensor], Tensor | int]:
        terms = generation_terms(logits, teacher_logits, attention_mask, self.balora_config, weights)
        return terms, logits.shape[:-1].numel() if attention_mask is None else attention_mask.sum()
