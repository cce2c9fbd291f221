"""Task adapters: one LoRA adapter per task on one frozen base, and mixed batches routed row by row.

PEFT holds the adapters, named after the tasks, and all are active, since PEFT refuses `adapter_names` in training.
The first task's `LoraVariant` does the work for all: it sorts the rows by task, runs each task's rows through its own
factors, and restores the order. The other tasks' variants do nothing.

In training the assignment of rows to tasks stays until the next batch, since gradient checkpointing runs layers again
in the backward pass.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from balora.adapters.saving import scale_rank
from balora.adapters.teacher import STUDENT, copy_factors, lora_layers
from balora.errors import BALoraError
from balora.losses import alignment_loss
from balora.utils.batches import count_rows

#: The task of each row: indices `(B,)`, names, or one name for all rows.
TaskIds = Tensor | Sequence[str] | str


class TaskRows:
    """The task of each row of the current batch, shared by all layers.

    Args:
        names: The tasks' names, in order.

    Attributes:
        ids: Task indices `(B,)`; `None` between batches.
        counts: Number of rows of each task.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.set(None)

    def set(self, ids: Tensor | None) -> None:
        """Set the task indices of a batch, or remove them with `None`."""
        self.ids = ids
        self.counts = [] if ids is None else torch.bincount(ids, minlength=len(self.names)).tolist()
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}

    def order(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the permutation that sorts rows by task and its inverse, `(rows,)` each.

        Args:
            rows: n·B; the n rows that generation or flattened tokens make of one are adjacent.
            device: Device of the result.

        Raises:
            BALoraError: If no tasks are set, or `rows` is not a multiple of their number.
        """
        if self.ids is None:
            raise BALoraError(
                f"task_ids: missing, and each row needs its task's adapter; give one of {self.names} for each row, or "
                "call set_adapter(task) for whole batches in evaluation"
            )
        if rows % len(self.ids):
            raise BALoraError(f"task_ids: {len(self.ids)} for {rows} rows; give one for each row")
        if rows not in self._orders:
            order = self.ids.repeat_interleave(rows // len(self.ids)).argsort(stable=True)
            self._orders[rows] = order, order.argsort()
        order, inverse = self._orders[rows]
        return order.to(device), inverse.to(device)


class TaskRoutedLora(LoraVariant):
    """All tasks' adapters of one layer, computed by the first task's variant; the others' variants do nothing.

    Args:
        rows: The current batch's tasks.
    """

    def __init__(self, rows: TaskRows) -> None:
        self.rows = rows

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Add the output of each row's task adapter to the base layer's.

        A task without rows is computed too, so that every parameter has a gradient in every step, as DDP requires.

        Args:
            module: The layer.
            active_adapter: Name of the adapter.
            x: `(n·B, ..., in)`.
            result: Output of the base layer, `(n·B, ..., out)`.

        Raises:
            BALoraError: If no tasks are set.
        """
        names = self.rows.names
        if active_adapter != names[0]:
            return result
        order, inverse = self.rows.order(len(x), x.device)
        repeats = len(x) // len(self.rows.ids)
        by_task = module.lora_dropout[names[0]](x)[order].split([repeats * count for count in self.rows.counts])
        outputs = [
            module.lora_B[name](module.lora_A[name](part)) * module.scaling[name]
            for name, part in zip(names, by_task, strict=True)
        ]
        return result + torch.cat(outputs)[inverse]

    def merge_safe(self, *_: Any) -> NoReturn:
        """Raise an error: each task has its own product.

        Raises:
            BALoraError: Always.
        """
        raise BALoraError(
            f"merge: each of {self.rows.names} has its own adapter; call merge_tasks() first to average them, or "
            "merge_tasks([name]) to keep one"
        )

    merge_unsafe = unmerge = merge_safe


def check_adapter_names(model: nn.Module, names: Sequence[str]) -> None:
    """Check that no task name is also part of a weight's name, where PEFT would confuse the two.

    Raises:
        BALoraError: If one is.
    """
    parts = {part for name, _ in model.named_parameters() for part in name.split(".")}
    for name in names:
        if name in parts | {"base_layer", "base_model", "lora_A", "lora_B"} or name in "lora_":
            raise BALoraError(
                f"task_names: {name!r} is also part of this model's weight names, and PEFT could not tell the two "
                "apart; use another name"
            )


def add_task_adapters(model: PeftModel, names: Sequence[str], *, inference_mode: bool) -> TaskRows:
    """Add a copy of the first task's adapter for each further task, and route rows by task.

    Args:
        model: A model with the first task's adapter.
        names: The tasks' names.
        inference_mode: Whether the adapters are frozen.

    Raises:
        BALoraError: If a layer is not linear.
    """
    for name, layer in lora_layers(model).items():
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper) or not isinstance(base, (nn.Linear, Conv1D)):
            raise BALoraError(
                f"target_modules: {name} is a {type(base).__name__}, and task_names adapts linear layers only; leave "
                "it out"
            )
    for name in names[1:]:
        PeftModel.add_adapter(model, name, replace(model.peft_config[names[0]]))
        copy_factors(model, names[0], name)
    rows = TaskRows(names)
    for layer in lora_layers(model).values():
        layer.lora_variant |= {name: TaskRoutedLora(rows) for name in names}
    model.base_model.set_adapter(list(names), inference_mode=inference_mode)
    return rows


def task_indices(task_ids: TaskIds, names: Sequence[str], rows: int | None) -> Tensor:
    """Convert task names or indices to a tensor of indices `(rows,)`.

    Args:
        task_ids: Indices, names, or one name for all rows.
        names: The tasks' names.
        rows: Number of rows; `None` if unknown, and one name then stands for one row.

    Raises:
        BALoraError: If a task is unknown, or there is not one for each row.
    """
    if isinstance(task_ids, str):
        task_ids = [task_ids] * (rows or 1)
    if not isinstance(task_ids, Tensor):
        unknown = [name for name in task_ids if name not in names]
        if unknown:
            raise BALoraError(f"task_ids: unknown {unknown[0]!r}; there are {', '.join(names)}")
        task_ids = torch.tensor([names.index(name) for name in task_ids])
    if task_ids.ndim != 1 or task_ids.is_floating_point() or len(task_ids) != (rows or len(task_ids)):
        raise BALoraError(
            f"task_ids: shape {tuple(task_ids.shape)} for {rows} rows; give one integer or name for each row"
        )
    if not 0 <= task_ids.min() <= task_ids.max() < len(names):
        raise BALoraError(
            f"task_ids: {task_ids.tolist()} is out of range; use 0 to {len(names) - 1} for {', '.join(names)}"
        )
    return task_ids.long()


@contextmanager
def task_routing(
    model: PeftModel, task_ids: TaskIds | None, inputs: dict[str, Any], *, keep: bool = False
) -> Iterator[None]:
    """Context manager: route each row through the adapter of its task; no effect for a model without tasks.

    Args:
        model: A `BALoraModel`, with or without tasks.
        task_ids: See `BALoraModel.forward`; with `None` in training, a layer raises an error when it runs.
        inputs: The model's inputs of these rows.
        keep: Whether the routing stays set on exit, until the next batch.

    Raises:
        BALoraError: If there is not one task for each row, or the model has no tasks.
    """
    if model.task_rows is None:
        if task_ids is not None:
            raise BALoraError("task_ids: there is one adapter for all rows; leave them out, or set task_names")
        yield
        return
    given = model.evaluated_task if task_ids is None and not model.training else task_ids
    model.task_rows.set(None if given is None else task_indices(given, model.task_rows.names, count_rows(inputs)))
    try:
        yield
    finally:
        if not keep:
            model.task_rows.set(None)


@contextmanager
def first_task_only(rows: TaskRows | None) -> Iterator[None]:
    """Context manager: keep only the task of the batch's first row, to run that row alone."""
    if rows is None or rows.ids is None:
        yield
        return
    ids = rows.ids
    rows.set(ids[:1])
    try:
        yield
    finally:
        rows.set(ids)


def alignment_term(model: PeftModel, names: Sequence[str]) -> Tensor:
    """Return `balora.losses.alignment_loss` between the tasks' adapters, scaling included, as a mean over layers.

    Layers of equal shape are batched, since there may be hundreds of small ones.

    Args:
        model: A model with an adapter for each task.
        names: The tasks' names.
    """
    alike: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    for layer in lora_layers(model).values():
        a = torch.stack([layer.lora_B[name].weight for name in names])  # (n, out, r)
        b = torch.stack([layer.lora_A[name].weight for name in names])  # (n, r, in)
        alike.setdefault((a.shape, b.shape, a.device, layer.scaling[names[0]]), []).append((a, b))
    terms = []
    for (*_, scaling), factors in alike.items():
        a, b = (torch.stack(factor) for factor in zip(*factors, strict=True))  # (L, n, out, r), (L, n, r, in)
        terms.append(torch.func.vmap(partial(alignment_loss, scaling=scaling))(a, b))
    return torch.cat([term.to(terms[0].device) for term in terms]).mean()


@torch.no_grad()
def task_distance(model: PeftModel, names: Sequence[str]) -> float:
    """Measure the scale-invariant distance between the tasks' adapters over all layers.

    Σ_{i<j} ‖ΔW_i − ΔW_j‖² / ((n − 1)·Σ_i ‖ΔW_i‖²): 0 if all are equal, 1 if they are pairwise orthogonal, and up to
    n/(n − 1) if they cancel.

    Args:
        model: A model with an adapter for each task.
        names: The tasks' names, at least two.

    Returns:
        The distance; 0 if every ΔW is 0.
    """
    n, apart, size = len(names), 0.0, 0.0
    for layer in lora_layers(model).values():
        deltas = torch.stack([layer.get_delta_weight(name).double() for name in names])  # (n, out, in)
        squares = float(deltas.square().sum())
        apart += n * squares - float(deltas.sum(0).square().sum())  # Σ over pairs of ‖ΔW_i − ΔW_j‖²
        size += squares
    return apart / ((n - 1) * size) if size else 0.0


@torch.no_grad()
def merge_task_adapters(model: PeftModel, names: Sequence[str], kept: Sequence[str]) -> None:
    """Replace the task adapters by one plain LoRA, `STUDENT`: the exact mean of the given tasks' adapters.

    For m tasks it has rank m·r, A = [A_1; …; A_m], B = [B_1, …, B_m]/m, and the same scaling.

    Args:
        model: A model with an adapter for each task.
        names: All tasks' names.
        kept: Names of the tasks to average.
    """
    first = model.peft_config[names[0]]
    config = replace(first, rank_pattern=dict(first.rank_pattern), alpha_pattern=dict(first.alpha_pattern))
    scale_rank(config, len(kept))
    PeftModel.add_adapter(model, STUDENT, config)
    for layer in lora_layers(model).values():
        a = torch.cat([layer.lora_A[name].weight for name in kept])  # (m·r, in)
        b = torch.cat([layer.lora_B[name].weight for name in kept], dim=1) / len(kept)  # (out, m·r)
        layer.lora_A[STUDENT].weight.copy_(a)
        layer.lora_B[STUDENT].weight.copy_(b)
    PeftModel.set_adapter(model, STUDENT, inference_mode=config.inference_mode)
    for name in names:
        PeftModel.delete_adapter(model, name)
