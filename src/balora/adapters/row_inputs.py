"""What belongs to each row of a batch, put where the adapted layers read it: SeLoRA's sentences, and rows' tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from balora.adapters import selora
from balora.adapters.adapted import AdaptedModel
from balora.adapters.task_adapters import TaskIds, ids_of
from balora.errors import BALoraError


@contextmanager
def guided(model: AdaptedModel, s: Tensor | None, inputs: dict[str, Any], *, keep: bool = False) -> Iterator[None]:
    """Within, these sentence vectors gate SeLoRA's layers; without any, a layer that needs its own says so.

    Args:
        model: Any, SeLoRA's or not.
        s: `(B, sentence_dim)`.
        inputs: What the B rows are.
        keep: Whether they stand until the next batch.

    Raises:
        BALoraError: If there is not one for each row, or the method has none.
    """
    if s is not None:
        selora.check_sentences(s, inputs, model.balora_config)
    if model.lora_gate is None:
        yield
        return
    selora.set_gates(model, None if s is None else model.lora_gate(s))
    model.sentences = s
    try:
        yield
    finally:
        if not keep:
            selora.set_gates(model, None)
            model.sentences = None


@contextmanager
def routed(
    model: AdaptedModel, task_ids: TaskIds | None, inputs: dict[str, Any], *, keep: bool = False
) -> Iterator[None]:
    """Within, each row goes through the adapter of its task; with none given, a layer that needs one says so.

    Args:
        model: Any, of several tasks or not.
        task_ids: As in `BALoraModel.forward`.
        inputs: What the rows are.
        keep: Whether they stand until the next batch.

    Raises:
        BALoraError: If there is not one for each row, or the model has no tasks.
    """
    if model.task_rows is None:
        if task_ids is not None:
            raise BALoraError("task_ids: there is one adapter for all rows; leave them out, or set task_names")
        yield
        return
    given = model.evaluated_task if task_ids is None and not model.training else task_ids
    model.task_rows.set(None if given is None else ids_of(given, model.task_rows.names, selora.rows_of(inputs)))
    try:
        yield
    finally:
        if not keep:
            model.task_rows.set(None)
