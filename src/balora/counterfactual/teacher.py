"""The counterfactual teacher: what the pretrained model says on average over whom a text is about.

    P̃(v | x) = (1/m)·Σ_k P(π_k(v) | π_k(x))

π_k exchanges every word of a group for the one k steps on, in the text and in what is predicted; m is the size of the
groups. A preference for a member of a group is gone from P̃, since the sum is the same for all of them. Where a
prediction stands within a word of several tokens, nothing corresponds, and P stays; so it does for words that no
single token stands for.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from balora.counterfactual.swaps import Swaps
from balora.errors import BALoraError


@dataclass(frozen=True)
class Other:
    """A batch about somebody else.

    Attributes:
        inputs: The model's, padded on the right, `(B, S')` each.
        places: For each position of the batch as it was, where the same has been read here, `(B, S)`; −1 where
            nothing corresponds or there is padding.
        partners: For each token the one that stands for it here, `(V,)`.
    """

    inputs: dict[str, Any]
    places: Tensor
    partners: Tensor


@dataclass(frozen=True)
class Others:
    """What the teacher makes of all of them, at the positions of the batch as it was.

    Attributes:
        hidden: Of each, `(B, S, d)`, or `(M, d)` of some of the positions.
        partners: Of each, `(V,)`.
        valid: `(B, S)`, or `(M,)`: where all of them correspond.
    """

    hidden: list[Tensor]
    partners: list[Tensor]
    valid: Tensor

    def rows(self, chosen: Tensor | slice) -> "Others":
        """Of some positions alone: a mask `(B, S)`, or a slice of what such a mask left."""
        return Others([hidden[chosen] for hidden in self.hidden], self.partners, self.valid[chosen])


def others_of(swaps: Swaps, inputs: dict[str, Any]) -> list[Other]:
    """The batch with its words exchanged, once for each step.

    Args:
        swaps: Of the model's tokenizer.
        inputs: `input_ids` `(B, S)`; what else has that shape follows its tokens.

    Raises:
        BALoraError: If there are no ids, or several texts stand in a row.
    """
    ids = inputs.get("input_ids")
    if ids is None or inputs.get("position_ids") is not None:
        raise BALoraError("counterfactual_words: words are exchanged in input_ids, one text a row; do not pack rows")
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
            positions = kept.nonzero()[:, 0]  # of the text's tokens in the row
            places[row, positions] = torch.tensor(swapped.places, dtype=torch.long)
            rows.append(swapped.ids)
            origins.append(positions[torch.tensor(swapped.origins, dtype=torch.long)].to(ids.device))
        moved = {
            name: pad_sequence([value[row, origin] for row, origin in enumerate(origins)], batch_first=True)
            for name, value in {**along, "attention_mask": mask}.items()
        }
        moved["input_ids"] = pad_sequence([torch.tensor(row) for row in rows], batch_first=True).to(ids)
        rest = {name: value for name, value in inputs.items() if name not in moved}
        found.append(Other({**rest, **moved}, places.to(ids.device), swaps.partners(steps).to(ids.device)))
    return found


def aligned(others: list[Other], hidden: list[Tensor]) -> Others:
    """The teacher's vectors of each, brought to the positions of the batch as it was.

    Args:
        others: n of them.
        hidden: `(B, S', d)` of each: hidden states or logits.
    """
    moved = [
        h.gather(1, other.places.clamp(min=0).unsqueeze(-1).expand(-1, -1, h.shape[-1]))
        for other, h in zip(others, hidden, strict=True)
    ]
    valid = torch.stack([other.places >= 0 for other in others]).all(0)
    return Others(moved, [other.partners for other in others], valid)


def mixed_logits(
    logits: Tensor, others: list[Tensor], partners: list[Tensor], valid: Tensor, temperature: float
) -> Tensor:
    """Logits whose softmax at T is the average of the softmaxes at T; as they are where nothing corresponds.

    Args:
        logits: `(M, V)`.
        others: `(M, V)` each, before their words are exchanged back.
        partners: `(V',)` each, of the tokenizer's tokens; a head may have more rows, which stay.
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
