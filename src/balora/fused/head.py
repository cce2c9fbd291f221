"""The LM head, taken out of the model's forward: what it is, what goes into it, and whether we understand it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from balora.adapters.teacher import STUDENT
from balora.utils.modules import evaluation_mode
from balora.utils.tolerance import TOLERANCE

#: Tokens that the start-up check runs on.
CHECKED_TOKENS = 16
#: What BART and its kin add to their head's output, `(1, V)`.
ADDED_BIAS = "final_logits_bias"
#: Inputs that the check looks at; the logits stand over the last of those there are.
CHECKED_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids", "decoder_inputs_embeds")


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
    if not is_plain_linear(module):
        return None
    bias, added = module.bias, getattr(model, ADDED_BIAS, None)
    if added is not None:
        bias = added[0] if bias is None else bias + added[0]
    config = model.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(module.weight, bias, scale / divisor, softcap)


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is `nn.Linear` itself, perhaps as FSDP2 has it, and no subclass that computes otherwise."""
    # fully_shard makes a module's class one of FSDPModule and that class.
    return type(module) is nn.Linear or type(module).__bases__ == (FSDPModule, nn.Linear)


def _contains(outer: nn.Module, module: nn.Module) -> bool:
    return any(inner is module for inner in outer.modules() if inner is not outer)


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
        return hidden[..., :1].clone()  # FSDP2 warns of a view, which nothing here writes to

    module.forward = keep
    added = getattr(model, ADDED_BIAS, None)
    if added is not None:
        setattr(model, ADDED_BIAS, added[:, :1])  # a whole one would spread that column over the vocabulary again
    try:
        yield received
    finally:
        del module.forward
        if added is not None:
            setattr(model, ADDED_BIAS, added)


@torch.no_grad()
def why_not_fused(model: PreTrainedModel, inputs: dict[str, Any], *, shift: int) -> str | None:
    """Why the objective must be computed from this model's own logits; `None` where hidden states and head will do.

    A few tokens go through the model as it is, and through its hidden states and what we believe its head to be; both
    must give the same logits and the same loss.

    Args:
        model: The base model, adapters included.
        inputs: The first batch's `input_ids` `(B, S)` or `inputs_embeds` `(B, S, d)`, and the decoder's where it has
            its own; what else it holds is not used.
        shift: The logits at position t predict `labels[t + shift]`.
    """
    module = model.get_output_embeddings()
    if head_of(model) is None:
        return f"its head is a {type(module).__name__}, not a plain linear layer"
    if any(isinstance(m, ModulesToSaveWrapper) and _contains(m, module) for m in model.modules()):
        return "its head is part of a larger module that is trained in full"
    given = [name for name in CHECKED_INPUTS if inputs.get(name) is not None]
    example = {name: inputs[name][:1, :CHECKED_TOKENS] for name in given}  # (1, s)
    written = example[given[-1]]
    vocabulary = model.config.get_text_config().vocab_size
    labels = torch.arange(written.shape[1], device=written.device).unsqueeze(0) % vocabulary
    with evaluation_mode(model):
        expected = model(**example, labels=labels, use_cache=False)
        with head_aside(model) as received:
            aside = model(**example, use_cache=False)
    if len(received) != 1 or received[0].shape[:-1] != labels.shape:
        return "its head is not called once on all hidden states"
    head = head_of(model)  # FSDP2 has its weight whole once the forward has been there
    if isinstance(head.weight, DTensor):
        return "its head's weight is spread over processes, and what is here after the forward is a part of it"
    if head.weight.shape[1:] != received[0].shape[-1:] or len(head.weight) != expected.logits.shape[-1]:
        shapes = f"{tuple(head.weight.shape)} for logits of {expected.logits.shape[-1]} entries"
        return f"its head's weight is not whole here, {shapes}, as under DeepSpeed's ZeRO-3 or tensor parallelism"
    logits = head.logits(received[0].to(head.weight.dtype))
    largest = expected.logits.abs().amax().clamp(min=1e-30)
    difference = (logits.float() - expected.logits.float()).abs().amax() / largest
    tolerance = TOLERANCE[expected.logits.dtype]
    if not difference <= tolerance:
        return f"its logits are not its head's (they differ by {difference:.2g} of the largest)"
    predicted = labels.shape[1] - shift
    if predicted:
        # Of its own logits, which rounding has not moved, so that what is small beside their precision shows. Some
        # models take their loss in the logits' precision, some in float32.
        own = expected.logits[0, :predicted].to(expected.loss.dtype)
        router = router_loss(model, aside)
        loss = F.cross_entropy(own, labels[0, shift:]) + (0 if router is None else router)
        tolerance = TOLERANCE[expected.loss.dtype]
        if not (loss - expected.loss).abs() <= tolerance * expected.loss.abs().clamp(min=1):
            return f"its loss is not the cross-entropy of its logits ({expected.loss:.6g}, not {loss:.6g})"
    return None


def router_loss(model: PreTrainedModel, output: ModelOutput) -> Tensor | None:
    """What the model's own loss has beside the cross-entropy: its routers' load-balancing loss times its coefficient.

    `None` where the forward computed none, which a mixture of experts does with `output_router_logits=True` in its
    configuration (Switch Transformer, Fedus et al. 2022, equations 4 to 6).

    Args:
        model: The base model.
        output: Of a forward, with the head or without.
    """
    balance = getattr(output, "aux_loss", None)
    coefficient = getattr(model, "router_aux_loss_coef", 0)  # where it is kept elsewhere, the check above will tell
    return coefficient * balance if coefficient and balance is not None else None
