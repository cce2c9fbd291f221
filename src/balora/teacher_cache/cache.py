"""`TeacherCache`: teacher logits of a batch, from cached features if present, else from a teacher pass."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from balora.adapters.adapted import AdaptedModel
from balora.teacher_cache.features import (
    example_keys,
    find_pooling,
    fingerprint,
    head_logits,
    live_head,
    pooled_features,
    weights_version,
)
from balora.teacher_cache.store import FeatureStore
from balora.utils.batches import select_examples
from balora.utils.modules import recorded_inputs


class TeacherCache:
    """Cache of the head's input for each example, filled by teacher passes on new examples.

    Features are stored under a fingerprint of the teacher, so a changed model starts an empty cache.

    Args:
        memory_mb: Memory limit, see `FeatureStore`.
        directory: Persistent folder, for resuming and for other processes; `None` for a temporary one.
        writer: Name of this process among those that share the folder.
    """

    def __init__(self, memory_mb: float, directory: Path | None = None, writer: str = "0") -> None:
        self.memory_mb = memory_mb
        self.directory = directory
        self.writer = writer
        self._written: int | None = None  # weights_version when the store was opened
        self._store: FeatureStore | None = None

    def teacher_logits(self, model: AdaptedModel, inputs: dict[str, Any]) -> Tensor:
        """Return teacher logits `(B, D)`, computed by the head in training, without gradient."""
        if self._written != weights_version(model):
            self._start(model, inputs)
        if self._store is None:
            return model.teacher_forward(**inputs).logits
        head = live_head(model)
        keys = example_keys(inputs)
        new = self._store.missing(keys)
        if new:
            rows = torch.zeros(len(keys), dtype=torch.bool, device=model.device)
            rows[new] = True
            part = select_examples(inputs, rows)
            _, received = teacher_pass(model, head, part)
            vectors = self._vectors(model, received, self._kind, part)  # (n, d)
            wide = torch.promote_types(vectors.dtype, torch.float32)
            self._store.add([keys[row] for row in new], vectors.to(wide).unsqueeze(1))
        features = torch.cat(self._store.take(keys)).to(model.device, self._dtype)  # (B, d)
        return head_logits(head, features, pooled=self._kind == "pooled")

    def forget(self) -> None:
        """Empty the cache and delete its folder."""
        self._written = self._store = None
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, model: AdaptedModel, inputs: dict[str, Any]) -> None:
        """Open a store for the features that the head needs; warn and open none if they cannot be cached."""
        self._written, self._store = weights_version(model), None
        head = live_head(model)
        logits, received = (None, None) if head is None else teacher_pass(model, head, inputs)
        pad = model.get_base_model().config.pad_token_id
        kind = None if received is None else find_pooling(head, received, logits, inputs, pad)
        if kind is not None:
            vectors = self._vectors(model, received, kind, inputs)
            folder = None if self.directory is None else self.directory / f"{fingerprint(model)}-{kind}"
            self._store = FeatureStore(folder, memory_mb=self.memory_mb, writer=self.writer)
            self._kind, self._dtype = kind, vectors.dtype
            return
        warnings.warn(
            f"balora: the teacher runs on every batch, since the head of {type(model.get_base_model()).__name__} does "
            "not read a single vector per example that could be cached"
        )

    @staticmethod
    def _vectors(model: AdaptedModel, head_input: Tensor, kind: str, inputs: dict[str, Any]) -> Tensor:
        return pooled_features(head_input, kind, inputs, model.get_base_model().config.pad_token_id)


def teacher_pass(model: AdaptedModel, head: nn.Sequential, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Run the teacher; return its logits and its head's input, `None` if the head was not called exactly once."""
    with recorded_inputs(head[0]) as received:
        logits = model.teacher_forward(**inputs).logits
    return logits, received[0] if len(received) == 1 else None
