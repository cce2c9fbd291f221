"""Sequence classification and regression: the classification objective on class logits."""

from typing import Any

from peft import PeftModelForSequenceClassification
from torch import Tensor

from balora.model import BALoraModel
from balora.objective import classification_terms


class BALoraModelForSequenceClassification(BALoraModel, PeftModelForSequenceClassification):
    """A sequence classifier with an adapter and the classification objective."""

    def _student_forward(
        self, inputs: dict[str, Any], labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> tuple[Any, Tensor, Tensor | float]:
        output = PeftModelForSequenceClassification.forward(self, **inputs, labels=labels)
        share = 1.0 if num_items_in_batch is None else (labels != -100).sum() / num_items_in_batch
        return output, output.loss * share, share

    def _terms(
        self, logits: Tensor, teacher_logits: Tensor | None, attention_mask: Tensor | None, weights: dict[str, float]
    ) -> tuple[dict[str, Tensor], Tensor | int]:
        return classification_terms(logits, teacher_logits, self.balora_config, weights), len(logits)
