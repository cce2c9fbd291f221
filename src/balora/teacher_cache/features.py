"""What of a teacher pass can be kept: the live head's input, one vector per example.

Heads take it in two ways: a pooled vector, or all positions of which one decides (the first in RoBERTa, the last token
in a decoder). Which one is found by trying, and kept only if the head's answer to it is the model's own.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from balora.utils.linalg import agree
from balora.utils.modules import evaluation_mode

#: Elements of each weight that the fingerprint reads.
SAMPLED = 4096


def live_head(model: PeftModel) -> nn.Sequential | None:
    """What lies outside the backbone, from the first module trained in full on, as one; `None` if none is.

    Parts are taken in the order the model lists them (DeBERTa's pooler, dropout, classifier). Whether that is how the
    model uses them is for the caller to find out.
    """
    base = model.get_base_model()
    backbone = getattr(base, base.base_model_prefix)
    inside = set(backbone.modules())
    heads = [m for m in base.modules() if isinstance(m, ModulesToSaveWrapper) and m not in inside]
    if len(heads) == 1:
        return nn.Sequential(*heads)
    parts = [part for part in base.children() if part is not backbone]
    trained = [place for place, part in enumerate(parts) if part in heads]
    return nn.Sequential(*parts[trained[0] :]) if trained else None


def kinds_of(head_input: Tensor) -> tuple[str, ...]:
    """What the deciding vector may be, for a head that was given `(B, d)` or `(B, S, d)`."""
    return ("pooled",) if head_input.ndim == 2 else ("first", "last")


def deciding_vectors(head_input: Tensor, kind: str, inputs: dict[str, Any], pad_token_id: int | None) -> Tensor:
    """`(B, d)`: the pooled vectors, those of the first positions, or those of the last tokens that are not padding.

    The last token is the one that Transformers' decoders classify by: the rightmost whose id is not the padding's.
    """
    if kind == "pooled":
        return head_input
    if kind == "first":
        return head_input[:, 0]
    ids = inputs.get("input_ids")
    if ids is None or pad_token_id is None:
        return head_input[:, -1]
    last = ((ids != pad_token_id) * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
    return head_input[torch.arange(len(ids), device=ids.device), last]


@torch.no_grad()
def logits_of(head: nn.Module, features: Tensor, *, pooled: bool) -> Tensor:
    """The live head's answer `(B, D)` to kept vectors `(B, d)`, in evaluation mode."""
    with evaluation_mode(head):
        return head(features if pooled else features.unsqueeze(1)).flatten(1)


def deciding_kind(
    head: nn.Module, head_input: Tensor, logits: Tensor, inputs: dict[str, Any], pad_token_id: int | None
) -> str | None:
    """Which of `kinds_of` the head decides by: the one whose vectors `(B, d)` give the model's logits; else `None`.

    Args:
        head: The live head.
        head_input: What it was given in an evaluation pass.
        logits: The model's in that pass, `(B, D)`.
        inputs: The model's.
        pad_token_id: The model's.
    """
    for kind in kinds_of(head_input):
        vectors = deciding_vectors(head_input, kind, inputs, pad_token_id)
        if agree(logits_of(head, vectors, pooled=kind == "pooled"), logits):
            return kind
    return None


def keys_of(inputs: dict[str, Any]) -> list[bytes]:
    """A key for each example: a digest of what the model is given of it, padding aside.

    So an example has its key in any order, batch or process, and other data or another tokenizer has other keys.
    """
    tensors = {name: value.cpu() for name, value in sorted(inputs.items()) if isinstance(value, Tensor)}
    shape = tensors["input_ids" if "input_ids" in tensors else "inputs_embeds"].shape[:2]
    mask = tensors.pop("attention_mask", torch.ones(shape)).bool()
    keys = []
    for row, kept in enumerate(mask):
        digest = hashlib.blake2b(str(int(kept.int().argmax())).encode(), digest_size=16)
        for name, value in tensors.items():
            own = value[row] if value.shape[:1] == shape[:1] else value
            digest.update(name.encode() + _bytes(own[kept] if value.shape[:2] == shape else own))
        keys.append(digest.digest())
    return keys


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def teacher_weights(model: PeftModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight that the teacher's features depend on: those that neither training nor a head's training moves."""
    for name, weight in model.get_base_model().named_parameters():
        if not weight.requires_grad and "modules_to_save" not in name and "original_module" not in name:
            yield name, weight


def times_written(model: PeftModel) -> int:
    """How often the teacher's weights were written in place in this process: cheap, and more after any change."""
    return sum(weight._version for _, weight in teacher_weights(model))


@torch.no_grad()
def fingerprint(model: PeftModel) -> str:
    """Of the teacher's function: configuration, precision, and a sample of every weight."""
    device = model.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    config = model.get_base_model().config.to_json_string()
    digest = hashlib.blake2b(f"{config} {precision}".encode(), digest_size=8)
    for name, weight in sorted(teacher_weights(model)):
        flat = weight.detach().flatten()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(_bytes(flat[:: max(1, len(flat) // SAMPLED)].cpu()))
    return digest.hexdigest()
