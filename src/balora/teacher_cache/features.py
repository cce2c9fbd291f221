"""Features of a teacher pass that can be cached: the classification head's input, one vector per example.

A head reads a pooled vector, or all positions of which it uses one (the first in RoBERTa, the last token in a
decoder). The pooling is found by trying, and accepted only if the head then reproduces the model's logits.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel, TaskType
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from balora.adapters.new_modules import is_new
from balora.utils.modules import evaluation_mode
from balora.utils.tolerance import logits_match

#: Number of elements of each weight that the fingerprint reads.
FINGERPRINT_ELEMENTS = 4096


def live_head(model: PeftModel) -> nn.Sequential | None:
    """Return the head in training: modules outside the backbone, from the first fully trained one on; may be `None`.

    They are chained in the order in which the model lists them (DeBERTa's pooler, dropout, classifier), after newly
    initialized ones inside the backbone (BERT's pooler); the caller must check that the model uses them so.
    """
    base = model.get_base_model()
    backbone = getattr(base, base.base_model_prefix)
    inside = set(backbone.modules())
    heads = [m for m in base.modules() if isinstance(m, ModulesToSaveWrapper) and m not in inside]
    new = [m for m in backbone.modules() if isinstance(m, ModulesToSaveWrapper) and is_new(m)]
    if len(heads) == 1 and not new:
        return nn.Sequential(*heads)
    parts = [part for part in base.children() if part is not backbone]
    trained = [place for place, part in enumerate(parts) if part in heads]
    return nn.Sequential(*new, *parts[trained[0] :]) if trained else None


def pooling_candidates(head_input: Tensor) -> tuple[str, ...]:
    """Return the possible poolings of a head input `(B, d)` or `(B, S, d)`."""
    return ("pooled",) if head_input.ndim == 2 else ("first", "last")


def pooled_features(head_input: Tensor, kind: str, inputs: dict[str, Any], pad_token_id: int | None) -> Tensor:
    """Pool a head input to `(B, d)`: already pooled, first positions, or last tokens that are not padding.

    As in Transformers' decoders, the last token is the rightmost whose id is not the padding's.
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
def head_logits(head: nn.Module, features: Tensor, *, pooled: bool) -> Tensor:
    """Compute the head's logits `(B, D)` for features `(B, d)`, in evaluation mode."""
    with evaluation_mode(head):
        return head(features if pooled else features.unsqueeze(1)).flatten(1)


def find_pooling(
    head: nn.Module, head_input: Tensor, logits: Tensor, inputs: dict[str, Any], pad_token_id: int | None
) -> str | None:
    """Return the pooling whose features reproduce the model's logits; `None` if none does.

    Args:
        head: From `live_head`.
        head_input: The head's input in an evaluation pass.
        logits: The model's logits in that pass, `(B, D)`.
        inputs: The model's inputs.
        pad_token_id: The model's padding token.
    """
    for kind in pooling_candidates(head_input):
        vectors = pooled_features(head_input, kind, inputs, pad_token_id)
        if logits_match(head_logits(head, vectors, pooled=kind == "pooled"), logits):
            return kind
    return None


def example_keys(inputs: dict[str, Any]) -> list[bytes]:
    """Return a key for each example: a digest of its model inputs without padding.

    The key does not depend on order, batch or process; other data and other tokenizers give other keys.
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
    """Yield every weight that the teacher's features depend on: all frozen ones, without a classifier's head."""
    classifies = model.balora_config.task_type == TaskType.SEQ_CLS  # its teacher has the head in training
    for name, weight in model.get_base_model().named_parameters():
        other = "modules_to_save" in name or (classifies and "original_module" in name)
        if not weight.requires_grad and not other:
            yield name, weight


def weights_version(model: PeftModel) -> int:
    """Return a version number of the teacher's weights, which increases with any in-place change."""
    return sum(weight._version for _, weight in teacher_weights(model))


@torch.no_grad()
def fingerprint(model: PeftModel) -> str:
    """Return a digest of the teacher: configuration, dtype, and a sample of every weight."""
    device = model.device.type
    precision = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    config = model.get_base_model().config.to_json_string()
    digest = hashlib.blake2b(f"{config} {precision}".encode(), digest_size=8)
    for name, weight in sorted(teacher_weights(model)):
        flat = weight.detach().flatten()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(_bytes(flat[:: max(1, len(flat) // FINGERPRINT_ELEMENTS)].cpu()))
    return digest.hexdigest()
