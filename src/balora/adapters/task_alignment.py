"""What is made of several tasks' adapters together: how far they lie apart, and one plain LoRA that is their mean."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from peft import PeftModel
from torch import Tensor

from balora.adapters.saving import scale_rank
from balora.adapters.teacher import STUDENT, lora_layers
from balora.losses import alignment_loss


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
