"""Several tasks, one LoRA adapter each on one frozen base, and batches that mix them: each row through its own task's.

PEFT holds the adapters, named as the tasks are, and all are active; it refuses `adapter_names` in training. So the
first task's `LoraVariant` does the work of all: it sorts the rows by task, takes each task's through its own factors,
and puts them back. The other tasks' variants have nothing left to do.

Which row is of which task stays with the layers until the next forward, since gradient checkpointing runs a layer
again in the backward pass.
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

#: What says of each row which task it is of.
TaskIds = Tensor | Sequence[str] | str


class TaskRows:
    """Which task each row of the present batch is of; one for all layers.

    Args:
        names: Of the tasks, in order.

    Attributes:
        ids: Places among the names, `(B,)`; `None` between batches.
        counts: Rows of each task.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.set(None)

    def set(self, ids: Tensor | None) -> None:
        """Begin a batch, or end one with `None`."""
        self.ids = ids
        self.counts = [] if ids is None else torch.bincount(ids, minlength=len(self.names)).tolist()
        self._orders: dict[int, tuple[Tensor, Tensor]] = {}

    def order(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Places of `rows` rows sorted by task, and where each is then found, `(rows,)` both.

        Args:
            rows: n·B: what generation and flattened tokens make of one row stands together.
            device: To have them on.

        Raises:
            BALoraError: If there is no batch, or `rows` is no multiple of its size.
        """
        if self.ids is None:
            raise BALoraError(
                f"task_ids: missing, and each row goes through its own task's adapter; give one of {self.names} for "
                "each row, or set_adapter(task) for whole batches in evaluation"
            )
        if rows % len(self.ids):
            raise BALoraError(f"task_ids: {len(self.ids)} for {rows} rows; give one for each row")
        if rows not in self._orders:
            order = self.ids.repeat_interleave(rows // len(self.ids)).argsort(stable=True)
            self._orders[rows] = order, order.argsort()
        order, inverse = self._orders[rows]
        return order.to(device), inverse.to(device)


class ByTask(LoraVariant):
    """All tasks' adapters in one layer, in the first one's place; in the others' nothing.

    Args:
        rows: Of the present batch.
    """

    def __init__(self, rows: TaskRows) -> None:
        self.rows = rows

    def forward(self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """`result`, the base layer's output, plus that of each row's own adapter.

        Every task takes part, with no rows as with many, so that each parameter has a gradient in every step, as
        processes that train together want.

        Args:
            module: The layer.
            active_adapter: The adapter's name in it.
            x: `(n·B, ..., in)`.
            result: `(n·B, ..., out)`.

        Raises:
            BALoraError: If it is not known which task the rows are of.
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
        """Refused: there is one product for each task.

        Raises:
            BALoraError: Always.
        """
        raise BALoraError(
            f"merge: there is one adapter for each of {self.rows.names}; call merge_tasks() first, which makes them "
            "their mean, or merge_tasks([name]), which keeps one"
        )

    merge_unsafe = unmerge = merge_safe


def check_adapter_names(model: nn.Module, names: Sequence[str]) -> None:
    """See that PEFT can tell the adapters of these tasks from the model's own parts, in the names of their weights.

    Raises:
        BALoraError: If not.
    """
    parts = {part for name, _ in model.named_parameters() for part in name.split(".")}
    for name in names:
        if name in parts | {"base_layer", "base_model", "lora_A", "lora_B"} or name in "lora_":
            raise BALoraError(
                f"task_names: {name!r} is also a part of this model's weights' names, from which PEFT could not tell "
                "the adapter; take another name"
            )


def attach_tasks(model: PeftModel, names: Sequence[str], *, inference_mode: bool) -> TaskRows:
    """Put an adapter for each further task beside the first one's, all alike, and send rows to their own.

    Args:
        model: With the first task's adapter.
        names: Of the tasks.
        inference_mode: Whether they stay frozen.

    Raises:
        BALoraError: If a layer is not a linear one.
    """
    for name, layer in lora_layers(model).items():
        base = layer.get_base_layer()
        if isinstance(layer, ParamWrapper) or not isinstance(base, (nn.Linear, Conv1D)):
            raise BALoraError(
                f"target_modules: {name} is a {type(base).__name__}; task_names adapts linear layers only, leave "
                "it out"
            )
    for name in names[1:]:
        PeftModel.add_adapter(model, name, replace(model.peft_config[names[0]]))
        copy_factors(model, names[0], name)
    rows = TaskRows(names)
    for layer in lora_layers(model).values():
        layer.lora_variant |= {name: ByTask(rows) for name in names}
    model.base_model.set_adapter(list(names), inference_mode=inference_mode)
    return rows


def ids_of(task_ids: TaskIds, names: Sequence[str], rows: int | None) -> Tensor:
    """Places among the names, `(rows,)`.

    Args:
        task_ids: Those, or names, or one name for all rows.
        names: Of the tasks.
        rows: How many there are; `None` where nobody knows, and one name is then one row.

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
            f"task_ids: shape {tuple(task_ids.shape)} for {rows} rows; give one whole number or name each"
        )
    if not 0 <= task_ids.min() <= task_ids.max() < len(names):
        raise BALoraError(f"task_ids: {task_ids.tolist()} are not all places among {', '.join(names)}; count from 0")
    return task_ids.long()


@contextmanager
def first_task_alone(rows: TaskRows | None) -> Iterator[None]:
    """Within, the layers expect the batch's first row by itself."""
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
    """`balora.losses.alignment_loss` between the tasks' adapters, scaling included, as a mean over the layers.

    Layers of one shape are taken together: there may be hundreds, and each alone is little work.

    Args:
        model: With an adapter for each task.
        names: Of the tasks.
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
    """How far the tasks' adapters lie apart, whatever their size, over all layers together.

    Σ_{i<j} ‖ΔW_i − ΔW_j‖² / ((n − 1)·Σ_i ‖ΔW_i‖²): 0 where all are one, 1 where no two have anything in common, and
    more where they undo one another, up to n/(n − 1).

    Args:
        model: With an adapter for each task.
        names: Of the tasks, two or more.

    Returns:
        The distance; 0 where no adapter has left its start.
    """
    n, apart, size = len(names), 0.0, 0.0
    for layer in lora_layers(model).values():
        deltas = torch.stack([layer.get_delta_weight(name).double() for name in names])  # (n, out, in)
        squares = float(deltas.square().sum())
        apart += n * squares - float(deltas.sum(0).square().sum())  # the sum over pairs
        size += squares
    return apart / ((n - 1) * size) if size else 0.0


@torch.no_grad()
def merge_into_one(model: PeftModel, names: Sequence[str], kept: Sequence[str]) -> None:
    """Leave one plain LoRA adapter, `balora.adapters.teacher.STUDENT`: the mean of some tasks', exactly.

    With m tasks kept it has rank m·r, A = [A_1; …; A_m] and B = [B_1, …, B_m]/m, and their scaling.

    Args:
        model: With an adapter for each task.
        names: Of all tasks.
        kept: Those that it is the mean of.
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
