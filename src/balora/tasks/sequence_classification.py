"""Sequence classification and regression: the classification objective on class logits."""

from typing import Any

from peft import PeftModelForSequenceClassification
from torch import Tensor

from balora.model import BALoraModel, BALoraOutput, combined
from balora.objective import classification_terms


class BALoraModelForSequenceClassification(BALoraModel, PeftModelForSequenceClassification):
    """A sequence classifier with an adapter and the classification objective."""

    def _objective(
        self,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        num_items_in_batch: Tensor | int | None,
        num_tokens_in_batch: Tensor | int | None,
    ) -> BALoraOutput:
        teacher_logits = self.teacher_forward(**inputs).logits if weights["consistency"] else None
        output = PeftModelForSequenceClassification.forward(self, **inputs, labels=labels)
        task_share = 1.0 if num_items_in_batch is None else (labels != -100).sum() / num_items_in_batch
        share = task_share if num_tokens_in_batch is None else len(labels) / num_tokens_in_batch
        terms = classification_terms(output.logits, teacher_logits, self.balora_config, weights)
        return combined(output, output.loss * task_share, terms, share, weights)
