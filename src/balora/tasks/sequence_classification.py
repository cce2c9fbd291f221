"""Sequence classification and regression: the classification objective on class logits."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForSequenceClassification
from torch import Tensor

from balora.model import BALoraModel, BALoraOutput, BatchCounts, combined
from balora.objective import classification_terms
from balora.teacher_cache import TeacherCache


class BALoraModelForSequenceClassification(BALoraModel, PeftModelForSequenceClassification):
    """A sequence classifier with an adapter and the classification objective."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_cache: TeacherCache | None = None
        # Processes that gather a sharded model's weights must all run the teacher or none, so only a trainer, which
        # knows that they are not sharded, lets them.
        if not torch.distributed.is_initialized():
            self.cache_teacher()

    def cache_teacher(self, directory: Path | None = None, writer: str = "0") -> None:
        """Keep the teacher's features, as the configuration's `teacher_cache_mb` allows.

        Args:
            directory: Folder for them that outlives the process; processes that train together share it.
            writer: Name of this process among those.
        """
        limit = self.balora_config.teacher_cache_mb
        self.teacher_cache = TeacherCache(limit, directory, writer) if limit else None

    def _teacher_logits(self, inputs: dict[str, Any]) -> Tensor:
        if self.teacher_cache is None:
            return self.teacher_forward(**inputs).logits
        return self.teacher_cache.teacher_logits(self, inputs)

    def counts_of(self, inputs: dict[str, Any], labels: Tensor) -> BatchCounts:
        """As `BALoraModel.counts_of`: of examples."""
        return BatchCounts((labels != -100).sum(), len(labels))

    def _objective(
        self, inputs: dict[str, Any], labels: Tensor, weights: dict[str, float], counts: BatchCounts
    ) -> BALoraOutput:
        teacher_logits = self._teacher_logits(inputs) if weights["consistency"] else None
        output = PeftModelForSequenceClassification.forward(self, **inputs, labels=labels)
        here = self.counts_of(inputs, labels)
        task_share = 1.0 if counts.items is None else here.items / counts.items
        share = task_share if counts.tokens is None else here.tokens / counts.tokens
        terms = classification_terms(output.logits, teacher_logits, self.balora_config, weights)
        terms |= self._semantic_terms()
        return combined(output, output.loss * task_share, terms, share, weights)
