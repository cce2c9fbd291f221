"""Counterfactual teacher: the pretrained model's predictions averaged over word exchanges.

    P̃(v | x) = (1/m)·Σ_k P(π_k(v) | π_k(x))

π_k replaces every word of a group by the member k steps on, in the text and in the prediction; m is the size of the
groups. P̃ has no preference for a member of a group, since the sum is the same for all. Within a word of several
tokens no position corresponds, and P is used; the same holds for words without a single token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from balora.counterfactual.swaps import Swaps
from balora.errors import BALoraError


@dataclass(frozen=True)
class SwappedBatch:
    """A batch with its words exchanged.

    Attributes:
        inputs: Model inputs, padded on the right, `(B, S')` each.
        places: For each original position the corresponding one in `inputs`, `(B, S)`; −1 for none and for padding.
        partners: Permutation of the vocabulary that the exchange applies, `(V,)`.
    """

    inputs: dict[str, Any]
    places: Tensor
    partners: Tensor


@dataclass(frozen=True)
class SwappedOutputs:
    """The teacher's outputs for all exchanged batches, aligned to the original positions.

    Attributes:
        hidden: One tensor per exchange, `(B, S, d)`, or `(M, d)` for selected positions.
        partners: One permutation per exchange, `(V,)`.
        valid: `(B, S)` or `(M,)`, whether the position corresponds in every exchange.
    """

    hidden: list[Tensor]
    partners: list[Tensor]
    valid: Tensor

    def rows(self, chosen: Tensor | slice) -> "SwappedOutputs":
        """Select positions by a mask `(B, S)`, or by a slice of already selected ones."""
        return SwappedOutputs([hidden[chosen] for hidden in self.hidden], self.partners, self.valid[chosen])


def swap_batches(swaps: Swaps, inputs: dict[str, Any]) -> list[SwappedBatch]:
    """Exchange the words of a batch, once for each number of steps.

    Args:
        swaps: Exchanges for the model's tokenizer.
        inputs: `input_ids` `(B, S)`; other tensors of that shape are rearranged with the tokens.

    Raises:
        BALoraError: If there are no ids, or rows are packed.
    """
    ids = inputs.get("input_ids")
    if ids is None or inputs.get("position_ids") is not None:
        raise BALoraError(
            "counterfactual_words: words are exchanged in input_ids with one text per row; do not pack rows"
        )
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    along = {name: value for name, value in inputs.items() if getattr(value, "shape", None) == ids.shape}
    found = []
    for steps in range(1, swaps.size):
        rows, origins = [], []
        places = torch.full(ids.shape, -1)
        for row, (own, kept) in enumerate(zip(ids.cpu(), mask.cpu().bool(), strict=True)):
            text = own[kept].tolist()
            swapped = swaps.swapped(text, steps)
            positions = kept.nonzero()[:, 0]  # the text's positions in the padded row
            places[row, positions] = torch.tensor(swapped.places, dtype=torch.long)
            rows.append(swapped.ids)
            origins.append(positions[torch.tensor(swapped.origins, dtype=torch.long)].to(ids.device))
        moved = {
            name: pad_sequence([value[row, origin] for row, origin in enumerate(origins)], batch_first=True)
            for name, value in {**along, "attention_mask": mask}.items()
        }
        moved["input_ids"] = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(ids)
        rest = {name: value for name, value in inputs.items() if name not in moved}
        found.append(SwappedBatch({**rest, **moved}, places.to(ids.device), swaps.partners(steps).to(ids.device)))
    return found


def align_outputs(others: list[SwappedBatch], hidden: list[Tensor]) -> SwappedOutputs:
    """Align the teacher's outputs for exchanged batches to the original positions.

    Args:
        others: The n exchanged batches.
        hidden: Hidden states or logits of each, `(B, S', d)`.
    """
    moved = [
        h.gather(1, other.places.clamp(min=0).unsqueeze(-1).expand(-1, -1, h.shape[-1]))
        for other, h in zip(others, hidden, strict=True)
    ]
    valid = torch.stack([other.places >= 0 for other in others]).all(0)
    return SwappedOutputs(moved, [other.partners for other in others], valid)


def average_logits(
    logits: Tensor, others: list[Tensor], partners: list[Tensor], valid: Tensor, temperature: float
) -> Tensor:
    """Return logits whose softmax at T is the mean of the softmaxes at T; unchanged where not `valid`.

    Args:
        logits: `(M, V)` of the original batch.
        others: `(M, V)` of each exchanged batch, before exchanging back.
        partners: `(V',)` of each; a head may have more rows than the tokenizer has tokens, which are not exchanged.
        valid: `(M,)`.
        temperature: T.
    """
    mean = (logits / temperature).softmax(-1)
    for other, partner in zip(others, partners, strict=True):
        beyond = torch.arange(len(partner), mean.shape[1], device=partner.device)
        mean += (other / temperature).softmax(-1)[:, torch.cat([partner, beyond])]
    mean /= 1 + len(others)
    tiny = torch.finfo(mean.dtype).tiny
    return torch.where(valid.unsqueeze(-1), temperature * mean.clamp(min=tiny).log(), logits)
