"""Task loss and per-token regularizers of one micro-batch from hidden states: the rows and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.config import BALoraConfig
from balora.counterfactual.teacher import SwappedOutputs
from balora.fused.chunks import WeightedTerm, head_loss
from balora.fused.head import Head
from balora.fused.row_gradients import RowObjective, RowWeights
from balora.fused.token_terms import TokenTerm


@dataclass
class Taught:
    """The teacher's output on a micro-batch.

    Attributes:
        hidden: `(n, S, d)`, hidden states of the sequences that the teacher saw; `None` where its logits are given.
        head: The teacher's head.
        picked: `(B,)`, true for those n sequences.
        rate: Probability of a sequence to be picked; terms that need the teacher are multiplied by 1/rate.
        others: Hidden states of the swapped sequences, for a counterfactual teacher; `None` for a plain one.
        logits: For each of the n sequences its logits `(S_i, V)` at the tokens that are not padding, from
            `teacher_head_logits` at the divergence's temperature.
    """

    hidden: Tensor | None
    head: Head
    picked: Tensor
    rate: float = 1.0
    others: SwappedOutputs | None = None
    logits: Sequence[Tensor] = ()


def fused_token_loss(
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    mask: Tensor | None,
    taught: Taught | None,
    config: BALoraConfig,
    terms: dict[str, TokenTerm],
    *,
    shift: int = 1,
    total_items: Tensor | int,
    share: Tensor | float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the task loss plus the weighted means over tokens, without `(B, S, V)` logits.

    The same numbers as `balora.model.regularizers` has from whole logits.

    Args:
        hidden: `(B, S, d)`, the student's, as the head gets them.
        head: The student's.
        labels: `(B, S)`, as the model takes them; −100 where there is none.
        mask: `(B, S)`, tokens that are not padding; `None` for all.
        taught: The teacher's part; `None` where no term needs a teacher or no sequence was picked.
        config: Temperature, direction, top_k, task_loss.
        terms: The terms to compute, with their λ.
        shift: The hidden state at position t predicts `labels[t + shift]`.
        total_items: What the task loss's sum is divided by.
        share: What the regularizers, means over this micro-batch's M tokens, are multiplied by.

    Returns:
        The loss, and each component unweighted, multiplied by its share, without gradient.
    """
    targets = F.pad(labels[:, shift:], (0, shift), value=-100).flatten()  # (B·S,)
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    tokens = mask.sum().clamp(min=1)  # M
    shown = mask & taught.picked.unsqueeze(-1) if taught is not None else torch.zeros_like(mask)
    wanted = targets != -100
    if not all(term.needs_teacher for term in terms.values()):
        wanted = wanted | mask.flatten()
    # Rows with a teacher first: a chunk has one for all of its rows or for none.
    rows = torch.cat([shown.flatten().nonzero()[:, 0], (wanted & ~shown.flatten()).nonzero()[:, 0]])
    targets, counted, shown = targets[rows], mask.flatten()[rows], shown.flatten()[rows]
    teacher_hidden = others = None
    if taught is not None and taught.hidden is not None:
        seen = mask[taught.picked]  # (n, S)
        teacher_hidden = taught.hidden[seen]
        others = None if taught.others is None else taught.others.rows(seen)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    per_token = share / tokens.to(wide)  # of each regularizer
    rate = 1.0 if taught is None else taught.rate
    row_weights = {name: _row_weights(term, shown, counted, per_token, rate) for name, term in terms.items()}
    off = torch.zeros_like(targets, dtype=wide)
    functions = {name: WeightedTerm(term, row_weights[name]) for name, term in terms.items() if term.loss is not None}
    loss, (task, consistency, entropy, *by_function) = head_loss(
        hidden.flatten(0, 1)[rows],
        head,
        teacher_hidden,
        None if taught is None else taught.head,
        RowWeights(
            labels=targets,
            task=(targets != -100).to(wide) / total_items,
            consistency=row_weights.get("consistency", off),
            entropy=row_weights.get("diversity", off),
        ),
        RowObjective(
            temperature=config.temperature,
            reverse=config.consistency_direction == "reverse",
            top_k=config.top_k if "diversity" in terms else 0,
            softcap=head.softcap,
            divergence="consistency" in terms,
            dft=config.task_loss == "dft",
        ),
        others,
        list(functions.values()),
        () if taught is None else taught.logits,
    )
    values = {"consistency": consistency, "diversity": entropy, **dict(zip(functions, by_function, strict=True))}
    components = {"task": task.sum() / total_items}
    for name, term in terms.items():
        if term.needs_teacher:  # 0 in rows without a teacher
            components[name] = values[name].sum() * per_token / rate
        else:
            components[name] = values[name][counted].sum() * per_token
    return loss, components


def _row_weights(term: TokenTerm, shown: Tensor, counted: Tensor, per_token: Tensor, rate: float) -> Tensor:
    """Return what each row's value is multiplied by in the loss, `(M,)`: λ, and the row's part in the mean.

    Args:
        term: The term.
        shown: `(M,)`, rows that the teacher saw.
        counted: `(M,)`, rows that the regularizers see.
        per_token: A token's part in a mean over all tokens.
        rate: Probability of a sequence to have a teacher.
    """
    if term.needs_teacher:
        return shown.to(per_token.dtype) * (term.weight * per_token / rate)
    return counted.to(per_token.dtype) * (term.weight * per_token)
