"""Causal language models: each token's logits predict the next token, and all tokens but padding are regularized."""

from typing import Any

from peft import PeftModelForCausalLM, TaskType
from torch import Tensor

from balora.model.generation import BALoraModelForGeneration


class BALoraModelForCausalLM(BALoraModelForGeneration, PeftModelForCausalLM, task_type=TaskType.CAUSAL_LM):
    """A causal language model with an adapter and the generation objective."""

    shift = 1

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        return inputs

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        return inputs.get("attention_mask")
