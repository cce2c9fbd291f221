"""The generation objective of one micro-batch from hidden states: which rows count, for what, and how much."""

from dataclasses import dataclass

import torch
from torch import Tensor

from balora.config import BALoraConfig
from balora.counterfactual.teacher import SwappedOutputs
from balora.fused.chunks import head_loss
from balora.fused.head import Head
from balora.fused.row_gradients import RowObjective, RowWeights
from balora.fused.spectrum import HeadSpectrum
from balora.utils.distributed import gather_rows


@dataclass
class Taught:
    """The teacher's part of a micro-batch.

    Attributes:
        hidden: `(n, S, d)`, of the sequences that the teacher saw.
        head: The teacher's.
        picked: `(B,)`, true for those n sequences.
        rate: Chance of a sequence to be among them; its divergence counts 1/rate times.
        others: Of a counterfactual teacher, what it says of the same sequences about others; `None` for the plain one.
    """

    hidden: Tensor
    head: Head
    picked: Tensor
    rate: float = 1.0
    others: SwappedOutputs | None = None


def fused_generation_loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    mask: Tensor | None,
    taught: Taught | None,
    config: BALoraConfig,
    weights: dict[str, float],
    spectrum: HeadSpectrum,
    *,
    shift: int = 1,
    total_items: Tensor | int,
    share: Tensor | float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Task loss plus weighted regularizers, as `balora.model.terms` has them, without `(B, S, V)` logits.

    Args:
        hidden: `(B, S, d)`, the student's, as the head gets them.
        head: The student's.
        labels: `(B, S)`, as the model takes them; −100 where there is none.
        mask: `(B, S)`, tokens that are not padding; `None` for all.
        taught: The teacher's part; `None` where consistency has no weight or no sequence was picked.
        config: Temperature, direction, top_k, spectral_k, gather_batch_terms.
        weights: λ of each term; one at 0 is not computed.
        spectrum: Of this head.
        shift: The hidden state at position t predicts `labels[t + shift]`.
        total_items: What the task loss's sum is divided by.
        share: What the regularizers, means over this micro-batch's M tokens, are multiplied by.

    Returns:
        The loss, and each component unweighted, multiplied by its share, without gradient.
    """
    targets = torch.nn.functional.pad(labels[:, shift:], (0, shift), value=-100).flatten()  # (B·S,)
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    tokens = mask.sum().clamp(min=1)  # M
    shown = mask & taught.picked.unsqueeze(-1) if taught is not None else torch.zeros_like(mask)
    wanted = targets != -100
    if weights["diversity"]:
        wanted = wanted | mask.flatten()
    # Rows with a teacher first: a chunk has one for all of its rows or for none.
    rows = torch.cat([shown.flatten().nonzero()[:, 0], (wanted & ~shown.flatten()).nonzero()[:, 0]])
    counted = mask.flatten()[rows]
    flat = hidden.flatten(0, 1)  # (B·S, d)
    teacher_hidden = others = None
    if taught is not None:
        seen = mask[taught.picked]  # (n, S)
        teacher_hidden = taught.hidden[seen]
        others = None if taught.others is None else taught.others.rows(seen)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    per_token = share / tokens.to(wide)  # of each regularizer
    rate = 1.0 if taught is None else taught.rate
    row_weights = RowWeights(
        labels=targets[rows],
        task=(targets[rows] != -100).to(wide) / total_items,
        consistency=shown.flatten()[rows].to(wide) * (weights["consistency"] * per_token / rate),
        entropy=counted.to(wide) * (weights["diversity"] * per_token),
    )
    objective = RowObjective(
        temperature=config.temperature,
        reverse=config.consistency_direction == "reverse",
        top_k=config.top_k if weights["diversity"] else 0,
        softcap=head.softcap,
    )
    loss, (task, consistency, entropy) = head_loss(
        flat[rows], head, teacher_hidden, None if taught is None else taught.head, row_weights, objective, others
    )
    components = {"task": task.sum() / total_items}
    if weights["consistency"]:
        components["consistency"] = consistency.sum() * per_token / rate
    if weights["diversity"]:
        components["diversity"] = entropy[counted].sum() * per_token
    if weights["spectral"]:
        batch = gather_rows(hidden[mask]) if config.gather_batch_terms else hidden[mask]  # (M, d)
        spectral = share * spectrum.loss(batch, head, k=config.spectral_k)
        loss = loss + weights["spectral"] * spectral
        components["spectral"] = spectral.detach()
    return loss, components
