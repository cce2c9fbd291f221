"""Causal language models: each token's logits predict the next token, and tokens but padding are regularized."""

from typing import Any

import torch.nn.functional as F
from peft import PeftModelForCausalLM, TaskType
from torch import Tensor

from balora.model.generation import BALoraModelForGeneration


class BALoraModelForCausalLM(BALoraModelForGeneration, PeftModelForCausalLM, task_type=TaskType.CAUSAL_LM):
    """A causal language model with an adapter and the generation objective."""

    shift = 1

    def _complete(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        return inputs

    def _counted(self, inputs: dict[str, Any], labels: Tensor) -> Tensor | None:
        mask = inputs.get("attention_mask")
        if self.balora_config.regularized_tokens == "all":
            return mask
        labelled = F.pad(labels[:, self.shift :] != -100, (0, self.shift))  # (B, S)
        # Padding on the left may precede a label, but a cached teacher has no states of padding.
        return labelled if mask is None else labelled & mask.bool()
