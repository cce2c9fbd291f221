"""Sequence classification and regression: the classification objective on class logits."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForSequenceClassification, TaskType
from torch import Tensor, nn

from balora.adapters.bias_path import RandomState, bias_path_term
from balora.counterfactual.teacher import swap_batches
from balora.errors import BALoraError
from balora.losses.bias_path import mean_of_tokens
from balora.model.base import BALoraModel, BALoraOutput, BatchCounts
from balora.model.regularizers import classification_terms, needs_teacher, weighted_sum
from balora.teacher_cache import TeacherCache
from balora.teacher_cache.cache import teacher_pass
from balora.teacher_cache.features import find_pooling, live_head, pooled_features
from balora.utils.distributed import is_sharded
from balora.utils.modules import recorded_inputs

#: The fallback where `find_pooling` finds no vector: the mean of the head's input.
MEAN = "mean"


class BALoraModelForSequenceClassification(
    BALoraModel, PeftModelForSequenceClassification, task_type=TaskType.SEQ_CLS
):
    """A sequence classifier with an adapter and the classification objective."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_cache: TeacherCache | None = None
        self._decides_by: str | None = None
        # Ranks of a sharded model must all run the teacher or none, and a cache may make them differ. In distributed
        # runs the trainer, which knows whether weights are sharded, turns it on.
        if not torch.distributed.is_initialized():
            self.cache_teacher()

    def cache_teacher(self, directory: Path | None = None, writer: str = "0") -> None:
        """Cache the teacher's features, up to the configuration's `teacher_cache_mb` in memory.

        Args:
            directory: Folder to keep them in beyond this process; processes that train together share it.
            writer: Name of this process among those.
        """
        limit = self.balora_config.teacher_cache_mb
        self.teacher_cache = TeacherCache(limit, directory, writer) if limit else None

    def _teacher_logits(self, inputs: dict[str, Any]) -> Tensor:
        """Return the teacher's logits `(N, D)`; with swaps, of the mean distribution at the consistency term's T."""
        about = [] if self.swaps is None else [other.inputs for other in swap_batches(self.swaps, inputs)]
        logits = torch.stack([self._plain_teacher_logits(given) for given in (inputs, *about)])  # (1 + m, N, D)
        if logits.shape[-1] == 1 or not about:
            return logits.mean(0)
        temperature = self.balora_config.temperature
        return temperature * (logits / temperature).softmax(-1).mean(0).log()

    def _plain_teacher_logits(self, inputs: dict[str, Any]) -> Tensor:
        if self.teacher_cache is None:
            return self.teacher_forward(**inputs).logits
        return self.teacher_cache.teacher_logits(self, inputs)

    def counts_of(self, inputs: dict[str, Any], labels: Tensor) -> BatchCounts:
        """Count labelled examples and examples."""
        return BatchCounts((labels != -100).sum(), len(labels))

    def _objective(
        self, inputs: dict[str, Any], labels: Tensor, weights: dict[str, float], counts: BatchCounts
    ) -> BALoraOutput:
        teacher_logits = self._teacher_logits(inputs) if needs_teacher(weights) else None
        head = self._head_of_bias_path(inputs)
        before = self._random_state()
        with contextlib.nullcontext([]) if head is None else recorded_inputs(head) as received:
            output = PeftModelForSequenceClassification.forward(self, **inputs, labels=labels)
        here = self.counts_of(inputs, labels)
        task_share = 1.0 if counts.items is None else here.items / counts.items
        share = task_share if counts.tokens is None else here.tokens / counts.tokens
        terms = classification_terms(output.logits, teacher_logits, self.balora_config, weights)
        terms |= self._adapter_terms()
        if head is not None:
            terms["bias_path"] = self._bias_path(inputs, head, received, before)
        task_loss = output.loss * task_share
        regularizers, components = weighted_sum(terms, share, weights)
        components = {"task": task_loss.detach(), **components}
        return BALoraOutput(loss=task_loss + regularizers, logits=output.logits, components=components)

    def _head_of_bias_path(self, inputs: dict[str, Any]) -> nn.Module | None:
        """Return the module whose input is the bias path's f, `None` where the path is off.

        Also finds which of the input's vectors the head decides by.

        Raises:
            BALoraError: If the model has no such module.
        """
        if not self.balora_config.bias_path_weight:
            return None
        head = live_head(self)
        if head is not None and self._decides_by is None:
            logits, received = teacher_pass(self, head, inputs)
            pad = self.get_base_model().config.pad_token_id
            self._decides_by = None if received is None else find_pooling(head, received, logits, inputs, pad) or MEAN
        if self._decides_by is None:
            raise BALoraError(
                f"bias_path_weight: {type(self.get_base_model()).__name__} has no head that is called once on the "
                "states that the bias path compares; use 0"
            )
        return head[0]

    def _bias_path(
        self, inputs: dict[str, Any], head: nn.Module, received: list[Tensor], before: RandomState
    ) -> Tensor:
        """Return the unweighted bias path; f is the vector that the head decides by, or else its input's mean."""

        def vectors(head_input: Tensor, given: dict[str, Any]) -> Tensor:
            if self._decides_by == MEAN:
                mask = given.get("attention_mask")
                return head_input if head_input.ndim == 2 else mean_of_tokens(head_input, mask)
            pad = self.get_base_model().config.pad_token_id
            return pooled_features(head_input, self._decides_by, given, pad)

        def represent(given: dict[str, Any], picked: Tensor) -> Tensor:
            with recorded_inputs(head) as hidden:
                PeftModelForSequenceClassification.forward(self, **given)
            return vectors(hidden[0], given)

        plain = vectors(received[0], inputs)
        return bias_path_term(
            self.get_base_model(),
            self.lora_bias_path,
            represent,
            inputs,
            plain,
            torch.ones_like(plain[:, 0]),
            before,
            config=self.balora_config,
            sharded=is_sharded(self),
        )
