"""The bytes of all tensors alive while something runs, and the most there were, on a device without such a counter."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from contenders import Shape, balora, batch_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts each storage from the operation that makes it to its end.

    Args:
        held: Tensors that are there already.

    Attributes:
        peak: The most bytes at once.
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._known: set[int] = set()
        for tensor in held:
            self._note(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage: torch.UntypedStorage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def counted(shape: Shape, checkpointing: bool) -> tuple[int, int]:
    """Bytes that a step of balora on this shape keeps for its backward, and the most that it holds at once."""
    model, loss_of = balora(shape)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = batch_of(shape)
    autocast = torch.autocast(shape.device, torch.bfloat16, enabled=shape.dtype == torch.bfloat16)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])

    def step() -> None:
        with autocast:
            loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # the head is looked at, the moments are made
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with autocast, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = loss_of(batch)
    bytes_kept = sum(storage.nbytes() for storage in kept.values())
    del loss
    kept.clear()
    states = [value for state in optimizer.state.values() for value in state.values()]
    with LiveBytes([*model.parameters(), *states]) as live:
        step()
    return bytes_kept, live.peak
