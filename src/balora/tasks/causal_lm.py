"""Causal language models: the generation objective, from hidden states where that is possible, else from logits."""

import warnings
from typing import Any

import torch
from peft import PeftModelForCausalLM
from torch import Tensor

from balora.batches import select_examples
from balora.fused import HeadSpectrum, Taught, fused_generation_loss, head_aside, head_of, why_not_fused
from balora.model import BALoraModel, BALoraOutput, combined
from balora.objective import generation_terms


class BALoraModelForCausalLM(BALoraModel, PeftModelForCausalLM):
    """A causal language model with an adapter and the generation objective."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fused: bool | None = None if self.balora_config.fused_lm_head else False
        self._spectrum = HeadSpectrum(seed=self.balora_config.seed)

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `BALoraModel.teacher_forward`; nothing is generated, so no cache is filled unless asked for."""
        return super().teacher_forward(*args, **{"use_cache": False, **kwargs})

    def _objective(
        self,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        num_items_in_batch: Tensor | int | None,
        num_tokens_in_batch: Tensor | int | None,
    ) -> BALoraOutput:
        if self._fused is None:
            self._fused = self._can_fuse(inputs)
        # Dividing by at least one keeps a micro-batch without labelled tokens at 0 instead of NaN.
        items = (labels[..., 1:] != -100).sum()
        total = items.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        mask = inputs.get("attention_mask")
        if num_tokens_in_batch is not None:
            share = (labels.numel() if mask is None else mask.sum()) / num_tokens_in_batch
        else:
            share = 1.0 if num_items_in_batch is None else items / total
        picked = self._pick_sequences(len(labels)) if weights["consistency"] else torch.zeros(len(labels)).bool()
        picked = picked.to(labels.device)
        objective = self._from_hidden_states if self._fused else self._from_logits
        return objective({"use_cache": False, **inputs}, labels, weights, picked, total, share)

    def _from_hidden_states(
        self,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        picked: Tensor,
        total: Tensor | int,
        share: Tensor | float,
    ) -> BALoraOutput:
        base = self.get_base_model()
        taught = None
        if picked.any():
            with head_aside(base) as received:
                self.teacher_forward(**select_examples(inputs, picked))
            taught = Taught(received[0], head_of(base, pretrained=True), picked, self.balora_config.sample_rate)
        with head_aside(base) as received:
            PeftModelForCausalLM.forward(self, **inputs)
        loss, components = fused_generation_loss(
            received[0],
            head_of(base),
            labels,
            inputs.get("attention_mask"),
            taught,
            self.balora_config,
            weights,
            self._spectrum,
            total_items=total,
            share=share,
        )
        return BALoraOutput(loss=loss, components=components)

    def _from_logits(
        self,
        inputs: dict[str, Any],
        labels: Tensor,
        weights: dict[str, float],
        picked: Tensor,
        total: Tensor | int,
        share: Tensor | float,
    ) -> BALoraOutput:
        teacher_logits = self.teacher_forward(**select_examples(inputs, picked)).logits if picked.any() else None
        # The model's own loss, so that what it adds (a router's auxiliary loss) stays.
        output = PeftModelForCausalLM.forward(self, **inputs, labels=labels, num_items_in_batch=total)
        mask = inputs.get("attention_mask")
        terms = generation_terms(output.logits, teacher_logits, mask, picked, self.balora_config, weights)
        return combined(output, output.loss, terms, share, weights)

    def _pick_sequences(self, count: int) -> Tensor:
        """Which of `count` sequences the teacher sees, `(count,)`: each with the same chance, `sample_rate`.

        As near to `sample_rate`·count of them as whole numbers allow, rounded up or down at random.
        """
        rate = self.balora_config.sample_rate
        if rate == 1:
            return torch.ones(count, dtype=torch.bool)
        number = int(rate * count + torch.rand(()).item())
        return torch.randperm(count) < number

    def _can_fuse(self, inputs: dict[str, Any]) -> bool:
        reason = why_not_fused(self.get_base_model(), inputs)
        if reason is not None:
            warnings.warn(
                f"balora: {type(self.get_base_model()).__name__} trains on whole logits, which takes more time and "
                f"memory: {reason}"
            )
        return reason is None
