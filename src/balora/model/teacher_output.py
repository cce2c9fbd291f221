"""The teacher's output on sequences: hidden states for the fused objective, else logits.

With swaps set, it is the pretrained model's average over the groups that a text may be about
(`balora.counterfactual.teacher`).
"""

from typing import Any

from torch import Tensor

from balora.counterfactual.teacher import align_outputs, average_logits, swap_batches
from balora.fused import Taught, head_aside, head_of
from balora.model.base import BALoraModel


def taught_hidden(model: BALoraModel, inputs: dict[str, Any], picked: Tensor, rate: float) -> Taught:
    """Return the teacher's hidden states for these sequences, with swaps also for their swapped versions.

    Args:
        model: A language model.
        inputs: Model inputs of the n sequences.
        picked: As in `Taught`.
        rate: As in `Taught`.
    """
    base, about = model.get_base_model(), [] if model.swaps is None else swap_batches(model.swaps, inputs)
    hidden = []
    for given in (inputs, *(other.inputs for other in about)):
        with head_aside(base) as received:
            model.teacher_forward(**given)
        hidden.append(received[0])
    others = align_outputs(about, hidden[1:]) if about else None
    return Taught(hidden[0], head_of(base, pretrained=True), picked, rate, others)


def taught_logits(model: BALoraModel, inputs: dict[str, Any], temperature: float) -> Tensor:
    """Return the teacher's logits `(n, S, V)`; with swaps, logits of the mean distribution at the temperature.

    Args:
        model: A language model.
        inputs: Model inputs of the n sequences.
        temperature: Temperature of the divergence that reads them.
    """
    logits = model.teacher_forward(**inputs).logits
    if model.swaps is None:
        return logits
    about = swap_batches(model.swaps, inputs)
    said = align_outputs(about, [model.teacher_forward(**other.inputs).logits for other in about])
    flat = [other.flatten(0, 1) for other in said.hidden]
    mixed = average_logits(logits.flatten(0, 1), flat, said.partners, said.valid.flatten(), temperature)
    return mixed.view_as(logits)
