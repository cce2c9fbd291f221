"""The LM head, taken out of the model's forward: its weights, its inputs, and a check that they give the logits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
NOT_CALLED_ONCE = "its head is not called once on all hidden states"


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
        """Compute all logits at once, `(..., V)`: the reference for the chunked pass."""
        x = self.scale * F.linear(hidden, self.weight, self.bias)
        return x if self.softcap is None else self.softcap * torch.tanh(x / self.softcap)


def head_of(model: PreTrainedModel, *, pretrained: bool = False) -> Head | None:
    """Return the head, trained in full or not; `None` if it is adapted or quantized, not a plain linear layer.

    Args:
        model: The base model, adapters included.
        pretrained: Whether to return the teacher's head, as before training.
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
    """Return whether a module is exactly `nn.Linear`, possibly wrapped by FSDP2, and not a subclass."""
    # fully_shard makes a module's class one of FSDPModule and that class.
    return type(module) is nn.Linear or type(module).__bases__ == (FSDPModule, nn.Linear)


def _contains(outer: nn.Module, module: nn.Module) -> bool:
    return any(inner is module for inner in outer.modules() if inner is not outer)


@contextmanager
def head_aside(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Context manager: the model's forward skips the head; the list receives the head's inputs.

    Everything before the head runs as usual, and one column replaces the logits in whatever runs after it.
    """
    module = model.get_output_embeddings()
    received: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        received.append(hidden)
        return hidden[..., :1].clone()  # a copy, since FSDP2 warns about a view

    module.forward = keep
    added = getattr(model, ADDED_BIAS, None)
    if added is not None:
        setattr(model, ADDED_BIAS, added[:, :1])  # the whole bias would broadcast the column to the vocabulary
    try:
        yield received
    finally:
        del module.forward
        if added is not None:
            setattr(model, ADDED_BIAS, added)


@contextmanager
def autocast_of(module: nn.Module) -> Iterator[list[torch.dtype]]:
    """Context manager: yield a list that gets autocast's dtype when the module is called; empty without autocast."""
    seen: list[torch.dtype] = []

    def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        device = args[0].device.type
        if torch.is_autocast_enabled(device):
            seen[:] = [torch.get_autocast_dtype(device)]

    handle = module.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def why_not_fused(model: PreTrainedModel, inputs: dict[str, Any], *, shift: int) -> str | None:
    """Return the reason to compute the objective from this model's own logits; `None` if the fused pass will do.

    A few tokens go through the model, and through its hidden states and `head_of`; both must give the same logits and
    the same loss.

    Args:
        model: The base model, adapters included.
        inputs: The first batch's `input_ids` `(B, S)` or `inputs_embeds` `(B, S, d)`, and the decoder's if it has
            any; other inputs are not used.
        shift: The logits at position t predict `labels[t + shift]`.
    """
    if (reason := _why_unsupported(model)) is not None:
        return reason
    example = _first_tokens(inputs)  # (1, s)
    written = [*example.values()][-1]
    vocabulary = model.config.get_text_config().vocab_size
    labels = torch.arange(written.shape[1], device=written.device).unsqueeze(0) % vocabulary
    with evaluation_mode(model):
        expected = model(**example, labels=labels, use_cache=False)
        with head_aside(model) as received:
            aside = model(**example, use_cache=False)
    if len(received) != 1 or received[0].shape[:-1] != labels.shape:
        return NOT_CALLED_ONCE
    if (reason := _why_other_logits(head_of(model), received[0], expected.logits)) is not None:
        return reason
    predicted = labels.shape[1] - shift
    if predicted:
        # From the model's own logits, so that rounding does not hide a small difference. Some models compute their
        # loss in the logits' precision, some in float32.
        own = expected.logits[0, :predicted].to(expected.loss.dtype)
        router = router_loss(model, aside)
        loss = F.cross_entropy(own, labels[0, shift:]) + (0 if router is None else router)
        tolerance = TOLERANCE[expected.loss.dtype]
        if not (loss - expected.loss).abs() <= tolerance * expected.loss.abs().clamp(min=1):
            return f"its loss is not the cross-entropy of its logits ({expected.loss:.6g}, not {loss:.6g})"
    return None


@torch.no_grad()
def why_not_scored(
    base: PreTrainedModel, forward: Callable[..., Any], inputs: dict[str, Any], *, pretrained: bool
) -> str | None:
    """Return the reason to score tokens from a forward's own logits; `None` if hidden states and head give the same.

    Args:
        base: The model whose head the forward calls, adapters included.
        forward: Called with inputs.
        inputs: The first batch, of which a few tokens of the first row are used.
        pretrained: As for `head_of`.
    """
    if (reason := _why_unsupported(base, pretrained=pretrained)) is not None:
        return reason
    ids = inputs.get("input_ids", inputs.get("inputs_embeds"))
    # What belongs to a row and not to its tokens, such as a sentence vector, is needed too; masks and positions, which
    # are of tokens, hold no fractions.
    further = {
        name: value[:1]
        for name, value in inputs.items()
        if isinstance(value, Tensor)
        and name not in CHECKED_INPUTS
        and (value.is_floating_point() or value.shape[:2] != ids.shape[:2])
    }
    tokens = _first_tokens(inputs)
    length = [*tokens.values()][-1].shape[1]  # the positions of a trained prompt come before
    expected = forward(**further, **tokens).logits[:, -length:]
    with head_aside(base) as received, autocast_of(base.get_output_embeddings()) as narrow:
        forward(**further, **tokens)
    if len(received) != 1 or received[0].ndim != 3 or received[0].shape[1] < length:
        return NOT_CALLED_ONCE
    head, hidden = head_of(base, pretrained=pretrained), received[0][:, -length:]
    if narrow:
        head = replace(head, weight=head.weight.to(narrow[0]))
        # Whatever runs the forward may convert its output to float32.
        expected = expected.to(narrow[0])
    return _why_other_logits(head, hidden, expected)


def _why_unsupported(model: PreTrainedModel, *, pretrained: bool = False) -> str | None:
    """Return why a model's head cannot be taken out of its forward, by its modules alone."""
    module = model.get_output_embeddings()
    if head_of(model, pretrained=pretrained) is None:
        return f"its head is a {type(module).__name__}, not a plain linear layer"
    if any(isinstance(m, ModulesToSaveWrapper) and _contains(m, module) for m in model.modules()):
        return "its head is part of a larger module that is trained in full"
    return None


def _first_tokens(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the first tokens of the first row, `(1, s)` each."""
    given = [name for name in CHECKED_INPUTS if inputs.get(name) is not None]
    return {name: inputs[name][:1, :CHECKED_TOKENS] for name in given}


def _why_other_logits(head: Head, hidden: Tensor, expected: Tensor) -> str | None:
    """Return why a head does not give the model's own logits `(1, s, V)` of hidden states `(1, s, d)`."""
    if isinstance(head.weight, DTensor):
        return "its head's weight is sharded over processes, and only a part of it is here after the forward"
    if head.weight.shape[1:] != hidden.shape[-1:] or len(head.weight) != expected.shape[-1]:
        shapes = f"{tuple(head.weight.shape)} for logits of {expected.shape[-1]} entries"
        return f"its head's weight is not whole here, {shapes}, as under DeepSpeed's ZeRO-3 or tensor parallelism"
    logits = head.logits(hidden.to(head.weight.dtype))
    largest = expected.abs().amax().clamp(min=1e-30)
    difference = (logits.float() - expected.float()).abs().amax() / largest
    if not difference <= TOLERANCE[expected.dtype]:
        return f"its logits are not its head's (they differ by {difference:.2g} of the largest)"
    return None


def router_loss(model: PreTrainedModel, output: ModelOutput) -> Tensor | None:
    """Return the routers' load-balancing loss times its coefficient, which the model adds to its cross-entropy.

    `None` where the forward computed none; a mixture of experts does so with `output_router_logits=True` in its
    configuration (Switch Transformer, Fedus et al. 2022, equations 4 to 6).

    Args:
        model: The base model.
        output: Output of a forward, with or without the head.
    """
    balance = getattr(output, "aux_loss", None)
    coefficient = getattr(model, "router_aux_loss_coef", 0)  # if a model keeps it elsewhere, `why_not_fused` finds out
    return coefficient * balance if coefficient and balance is not None else None
