"""The LM head, taken out of the model's forward: what it is, what goes into it, and whether we understand it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.adapters.teacher import STUDENT
from balora.agreement import TOLERANCE
from balora.modes import evaluation_mode

#: Tokens that the start-up check runs on.
CHECKED_TOKENS = 16


@dataclass(frozen=True)
class Head:
    """From hidden states h `(M, d)` to logits: cap(scale·(h·Wᵀ + b)), with cap(x) = c·tanh(x/c).

    Attributes:
        weight: W, `(V, d)`.
        bias: b, `(V,)`.
        scale: Multiplier of the logits (Cohere, Granite).
        softcap: c (Gemma).
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """All logits at once, `(..., V)`: what the faster ways avoid, and are held against."""
        x = self.scale * F.linear(hidden, self.weight, self.bias)
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)


def head_of(model: PreTrainedModel, *, pretrained: bool = False) -> Head | None:
    """The head, trained in full or not; `None` if it is adapted or quantized, no linear map of a weight to be read.

    Args:
        model: The base model, adapters included.
        pretrained: The one before training, the teacher's.
    """
    module = model.get_output_embeddings()
    if isinstance(module, ModulesToSaveWrapper):
        module = module.original_module if pretrained else module.modules_to_save[STUDENT]
    if type(module) is not nn.Linear:
        return None
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(module.weight, module.bias, scale / divisor, softcap)


@contextmanager
def head_aside(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within, the model's forward stops short of its logits; the list receives what the head would have been given.

    The forward is otherwise the model's own, so whatever stands before the head has been applied, and one column takes
    the logits' place in what comes after it.
    """
    module = model.get_output_embeddings()
    received: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        received.append(hidden)
        return hidden[..., :1]

    module.forward = keep
    try:
        yield received
    finally:
        del module.forward


@torch.no_grad()
def why_not_fused(model: PreTrainedModel, inputs: dict[str, Any]) -> str | None:
    """Why the objective must be computed from this model's own logits; `None` where hidden states and head will do.

    A few tokens go through the model as it is, and through its hidden states and what we believe its head to be; both
    must give the same logits and the same loss.

    Args:
        model: The base model, adapters included.
        inputs: The first batch's `input_ids` `(B, S)` or `inputs_embeds` `(B, S, d)`; what else it holds is not used.
    """
    head = head_of(model)
    if head is None:
        return f"its head is a {type(model.get_output_embeddings()).__name__}, not a plain linear layer"
    name = "input_ids" if "input_ids" in inputs else "inputs_embeds"
    example = {name: inputs[name][:1, :CHECKED_TOKENS]}  # (1, s)
    labels = torch.arange(example[name].shape[1], device=example[name].device).unsqueeze(0) % len(head.weight)
    with evaluation_mode(model):
        expected = model(**example, labels=labels, use_cache=False)
        with head_aside(model) as received:
            model(**example, use_cache=False)
    if len(received) != 1 or received[0].shape[:-1] != labels.shape:
        return "its head is not called once on all hidden states"
    logits = head.logits(received[0].to(head.weight.dtype)).float()
    difference = (logits - expected.logits.float()).abs().amax() / expected.logits.abs().amax().clamp(min=1e-30)
    tolerance = TOLERANCE[expected.logits.dtype]
    if not difference <= tolerance:
        return f"its logits are not its head's (they differ by {difference:.2g} of the largest)"
    loss = F.cross_entropy(logits[0, :-1], labels[0, 1:]) if labels.shape[1] > 1 else expected.loss
    if not (loss - expected.loss).abs() <= tolerance * expected.loss.abs().clamp(min=1):
        return f"its loss is not the cross-entropy of its logits ({expected.loss:.6g}, not {loss:.6g})"
    return None
