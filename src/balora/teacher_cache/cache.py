"""`TeacherCache`: teacher logits of a batch, from kept features where there are some, else from a teacher pass."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from balora.adapters.adapted import AdaptedModel
from balora.teacher_cache.features import (
    deciding_kind,
    deciding_vectors,
    fingerprint,
    keys_of,
    live_head,
    logits_of,
    times_written,
)
from balora.teacher_cache.store import FeatureStore
from balora.utils.batches import select_examples
from balora.utils.modules import noted_inputs


class TeacherCache:
    """Runs the teacher on examples it has not seen and remembers what the live head would need of them.

    Features are kept under a fingerprint of the teacher, so a changed model starts anew.

    Args:
        memory_mb: See `FeatureStore`.
        directory: Folder that outlives the process, for a resume and for other processes; `None` for none.
        writer: Name of this process among those that share the folder.
    """

    def __init__(self, memory_mb: float, directory: Path | None = None, writer: str = "0") -> None:
        self.memory_mb = memory_mb
        self.directory = directory
        self.writer = writer
        self._written: int | None = None  # of the teacher's weights, when the store was opened
        self._store: FeatureStore | None = None

    def teacher_logits(self, model: AdaptedModel, inputs: dict[str, Any]) -> Tensor:
        """Teacher logits `(B, D)` through the live head, without gradient."""
        if self._written != times_written(model):
            self._start(model, inputs)
        if self._store is None:
            return model.teacher_forward(**inputs).logits
        head = live_head(model)
        keys = keys_of(inputs)
        new = self._store.missing(keys)
        if new:
            rows = torch.zeros(len(keys), dtype=torch.bool, device=model.device)
            rows[new] = True
            part = select_examples(inputs, rows)
            _, received = teacher_pass(model, head, part)
            self._store.add([keys[row] for row in new], self._vectors(model, received, self._kind, part))
        features = self._store.take(keys).to(model.device, self._dtype)
        return logits_of(head, features, pooled=self._kind == "pooled")

    def forget(self) -> None:
        """Delete the folder."""
        self._written = self._store = None
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self, model: AdaptedModel, inputs: dict[str, Any]) -> None:
        """Find out on a first batch what to keep; no store, and a warning, if nothing can be."""
        self._written, self._store = times_written(model), None
        head = live_head(model)
        logits, received = (None, None) if head is None else teacher_pass(model, head, inputs)
        pad = model.get_base_model().config.pad_token_id
        kind = None if received is None else deciding_kind(head, received, logits, inputs, pad)
        if kind is not None:
            vectors = self._vectors(model, received, kind, inputs)
            folder = None if self.directory is None else self.directory / f"{fingerprint(model)}-{kind}"
            wide = torch.promote_types(vectors.dtype, torch.float32)
            limits = {"memory_mb": self.memory_mb, "writer": self.writer}
            self._store = FeatureStore(folder, vectors.shape[-1], wide, **limits)
            self._kind, self._dtype = kind, vectors.dtype
            return
        warnings.warn(
            f"balora: the teacher runs on every batch, since {type(model.get_base_model()).__name__} gives its head "
            "no one vector per example that could be kept"
        )

    @staticmethod
    def _vectors(model: AdaptedModel, head_input: Tensor, kind: str, inputs: dict[str, Any]) -> Tensor:
        return deciding_vectors(head_input, kind, inputs, model.get_base_model().config.pad_token_id)


def teacher_pass(model: AdaptedModel, head: nn.Sequential, inputs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """A teacher pass: its logits, and what the head was given, `None` if it was not called just once."""
    with noted_inputs(head[0]) as received:
        logits = model.teacher_forward(**inputs).logits
    return logits, received[0] if len(received) == 1 else None
