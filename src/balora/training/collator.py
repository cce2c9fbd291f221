"""Collator for the inputs that SeLoRA and task adapters read beside the base model's: one value for each row."""

from collections.abc import Callable
from typing import Any

import torch

from balora.config import BALoraConfig
from balora.errors import BALoraError

#: Columns that adapters read, and the remedy if a row has none.
ADAPTER_INPUTS = {
    "sentence_embeds": "selora reads one for each row; balora.data.add_sentence_embeds makes the column from texts",
    "task_ids": "each row needs its task's adapter; give indices into task_names, from 0",
}


def adapter_inputs(config: BALoraConfig) -> list[str]:
    """Return the names in `ADAPTER_INPUTS` that a model of this configuration reads."""
    wanted = {"sentence_embeds": config.gated, "task_ids": config.task_names is not None}
    return [name for name in ADAPTER_INPUTS if wanted[name]]


class AdapterInputCollator:
    """Wraps a collator that does not know one of `ADAPTER_INPUTS`, and collates that column itself.

    Args:
        collate: The collator of the other columns.
        name: Name of the column.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], name: str) -> None:
        self.collate = collate
        self.name = name

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows; the column is stacked to `(B, ...)`."""
        if not all(self.name in row for row in rows):
            raise BALoraError(f"{self.name}: missing in a row; {ADAPTER_INPUTS[self.name]}")
        values = torch.stack([torch.as_tensor(row[self.name]) for row in rows])
        rest = [{name: value for name, value in row.items() if name != self.name} for row in rows]
        return {**self.collate(rest), self.name: values}
