"""`PackingMixin`: refuse to pack rows for a model that reads across them."""

from typing import Any

import torch
from torch import nn

from balora.errors import BALoraError
from balora.utils.modules import evaluation_mode
from balora.utils.tolerance import TOLERANCE

#: Tokens of the neighbour and of the row that must not read it.
NEIGHBOUR, ROW = 24, 12


class PackingMixin:
    """Mixin for TRL's `SFTTrainer`: before packed training, compare a packed row with the same row alone.

    Rows are kept apart by their restarting positions. ALiBi (BLOOM), positions counted from the attention mask (OPT)
    and state spaces (Mamba) ignore these, so that a row would be trained as the continuation of its neighbour. A model
    that FSDP or DeepSpeed shards is not compared.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, once rows are known to be kept apart.

        Raises:
            BALoraError: If the model reads across packed rows.
        """
        if self.padding_free and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            check_packing(self.model, self.data_collator)
        return super().train(*args, **kwargs)


@torch.no_grad()
def check_packing(model: nn.Module, collate: Any) -> None:
    """Check that a row's logits do not depend on the row that it is packed behind.

    Args:
        model: The model to train.
        collate: TRL's collator, which joins rows into one.

    Raises:
        BALoraError: If they differ by more than rounding, or the model does not take packed rows.
    """
    config = model.config.get_text_config()
    tokens = torch.randint(config.vocab_size, (NEIGHBOUR + ROW,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"input_ids": ids, "labels": list(ids)} for ids in (tokens[:NEIGHBOUR], tokens[NEIGHBOUR:])]
    packed, alone = (_logits(model, collate(joined))[:, -ROW:].float() for joined in (rows, rows[1:]))  # (1, ROW, V)
    precisions = [TOLERANCE.get(parameter.dtype, 0.0) for parameter in model.parameters()]
    difference = (packed - alone).abs().max()
    if not difference <= max(precisions) * alone.abs().max():
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        raise BALoraError(
            f"packing: {type(base).__name__} reads across packed rows (a row's logits change by {difference:.2g} "
            "behind another row); leave packing and padding_free out, and use train_sampling_strategy: "
            "group_by_length to pad less"
        )


def _logits(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    device = next(model.parameters()).device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
        if name != "labels"
    }
    with evaluation_mode(model):
        return model(**inputs, use_cache=False).logits  # as in training; with a cache, rows are not kept apart
