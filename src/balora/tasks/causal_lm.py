"""Causal language models: each token's logits predict the next one, and every token that is not padding counts."""

from typing import Any

from peft import PeftModelForCausalLM
from torch import Tensor

from balora.tasks.generation import BALoraModelForGeneration


class BALoraModelForCausalLM(BALoraModelForGeneration, PeftModelForCausalLM):
    """A causal language model with an adapter and the generation objective."""

    shift = 1

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        return inputs

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        return inputs.get("attention_mask")
