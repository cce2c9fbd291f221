"""`SequenceCache`: the teacher's hidden states on token sequences, so that it reads each sequence once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from balora.adapters.adapted import AdaptedModel
from balora.teacher_cache.features import example_keys, fingerprint, weights_version
from balora.teacher_cache.store import FeatureStore
from balora.utils.batches import select_examples


class SequenceCache:
    """Cache of the states of each sequence's tokens, filled by teacher passes on new sequences.

    The anchors' states are all kept, those of a task's rows, of which there may be many more, only as far as they fit
    into memory beside what the anchors need.

    States are stored under a fingerprint of the teacher, so a changed model starts an empty cache. A process reads
    its own states alone, so that a resumed run has those of an uninterrupted one to the bit. Logits, which are much
    larger and can be computed from the states, are kept in memory where the caller asks for it.

    Args:
        memory_mb: Memory limit for states and logits in MB (2²⁰ bytes); more states are read from a memory-mapped
            file.
        directory: Persistent folder, for resuming; `None` for a temporary one.
        writer: Name of this process among those that share the folder.
        rows: Whether the states of a task's rows are to be kept.

    Attributes:
        reserved_mb: Part of the limit that rows leave to the anchors.
    """

    def __init__(
        self, memory_mb: float, directory: Path | None = None, writer: str = "0", *, rows: bool = False
    ) -> None:
        self.memory_mb = memory_mb
        self.rows = rows
        self.reserved_mb = 0.0
        self.directory = directory
        self.writer = writer
        self._opened: tuple[int, str] | None = None  # weights_version and kind of the store
        self._store: FeatureStore | None = None
        self._logits: dict[bytes, Tensor] = {}

    def states(
        self,
        model: AdaptedModel,
        inputs: dict[str, Any],
        kind: str,
        compute: Callable[[dict[str, Any]], Tensor],
        *,
        anchors: bool,
    ) -> list[Tensor]:
        """Return the states `(S_i, width)` of each row's tokens that are not padding.

        Args:
            model: The model whose teacher this is.
            inputs: `(B, S)`, with a mask of the padding.
            kind: Name of what is computed; another one starts another store.
            compute: Function from inputs of n rows to their states `(n, S, width)`.
            anchors: Whether these are anchors, whose states are kept also beyond the memory limit.
        """
        store, keys = self._open(model, kind), example_keys(inputs)
        new, computed = store.missing(keys), {}
        if new:
            rows = torch.zeros(len(keys), dtype=torch.bool, device=model.device)
            rows[new] = True
            part = select_examples(inputs, rows)
            kept = part["attention_mask"].bool()
            pairs = zip(new, compute(part), kept, strict=True)
            computed = {keys[row]: states[mask] for row, states, mask in pairs}
            for key, states in computed.items():
                held = (store.memory_bytes + states.nbytes) / 2**20
                if anchors or held + self.reserved_mb <= self.memory_mb:
                    store.add([key], [states])
        return [computed[key] if key in computed else store.take([key])[0].to(model.device) for key in keys]

    def logits(
        self,
        model: AdaptedModel,
        inputs: dict[str, Any],
        kind: str,
        compute: Callable[[dict[str, Any]], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """Return logits `(S_i, V)` of each row's tokens, kept in memory whatever the limit.

        Args:
            model: As for `states`, as are the next three.
            inputs: `(B, S)`.
            kind: Name of the states.
            compute: Function of inputs.
            project: Function from the states `(S_i, width)` of one row to its logits.
        """
        self._open(model, kind)
        keys = example_keys(inputs)
        new = [row for row, key in enumerate(keys) if key not in self._logits]
        if new:
            # One row at a time, so that its logits do not depend on the rows beside it.
            for row, states in zip(keys, self.states(model, inputs, kind, compute, anchors=True), strict=True):
                if row not in self._logits:
                    self._logits[row] = project(states)
        return [self._logits[key] for key in keys]

    def forget(self) -> None:
        """Empty the cache and delete its folder."""
        self._opened = self._store = None
        self._logits = {}
        if self.directory is not None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _open(self, model: AdaptedModel, kind: str) -> FeatureStore:
        wanted = weights_version(model), kind
        if self._opened != wanted:
            folder = None if self.directory is None else self.directory / f"{fingerprint(model)}-{kind}"
            self._store = FeatureStore(folder, memory_mb=self.memory_mb, writer=self.writer, shared=False)
            self._logits, self._opened = {}, wanted
        return self._store
