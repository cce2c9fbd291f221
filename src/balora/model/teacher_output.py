"""The teacher's output on sequences: hidden states for the fused objective, else logits.

With swaps set, it is the pretrained model's average over the groups that a text may be about
(`balora.counterfactual.teacher`).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from balora.counterfactual.teacher import SwappedOutputs, align_outputs, average_logits, swap_batches
from balora.fused import Taught, head_aside, head_of, teacher_head_logits
from balora.model.base import BALoraModel
from balora.teacher_cache import SequenceCache


def taught_hidden(
    model: BALoraModel,
    inputs: dict[str, Any],
    picked: Tensor,
    rate: float,
    cache: SequenceCache | None = None,
    *,
    anchors: bool = False,
) -> Taught:
    """Return the teacher's hidden states for these sequences, with swaps also for their swapped versions.

    Args:
        model: A language model.
        inputs: Model inputs of the n sequences.
        picked: As in `Taught`.
        rate: As in `Taught`.
        cache: Where the states of sequences are kept; `None` runs the teacher on all of them.
        anchors: Whether the sequences are anchors.
    """
    if cache is None:
        states = _states(model, inputs)
    else:
        kept = inputs["attention_mask"].bool()
        found = cache.states(model, inputs, _kind(model), partial(_states, model), anchors=anchors)
        found = torch.cat(found)  # (M, width)
        states = found.new_zeros(*kept.shape, found.shape[-1])  # (n, S, width)
        states[kept] = found
    hidden, others = _split(model, states)
    return Taught(hidden, head_of(model.get_base_model(), pretrained=True), picked, rate, others)


def taught_by_logits(
    model: BALoraModel, inputs: dict[str, Any], picked: Tensor, temperature: float, cache: SequenceCache
) -> Taught:
    """Return the teacher's output on these sequences by its logits, which are computed once and kept in memory.

    Args:
        model: A language model.
        inputs: Model inputs of the n sequences.
        picked: As in `Taught`.
        temperature: Temperature of the divergence that reads them.
        cache: Where logits and states are kept.
    """
    head = head_of(model.get_base_model(), pretrained=True)

    def project(states: Tensor) -> Tensor:
        hidden, others = _split(model, states)
        return teacher_head_logits(hidden, head, others, temperature)

    logits = cache.logits(model, inputs, _kind(model), partial(_states, model), project)
    return Taught(None, head, picked, logits=logits)


def _kind(model: BALoraModel) -> str:
    """Return the name of the states for the cache, which tells plain ones from those of other swaps."""
    return "hidden" if model.swaps is None else f"hidden-{model.swaps.digest()}"


def _states(model: BALoraModel, inputs: dict[str, Any]) -> Tensor:
    """Run the teacher; return hidden states `(n, S, d)`.

    With swaps, beside each other `(n, S, m·d + 1)`: the sequence's, its m − 1 swapped versions', and whether the
    position is valid in all of them.
    """
    base, about = model.get_base_model(), [] if model.swaps is None else swap_batches(model.swaps, inputs)
    hidden = []
    for given in (inputs, *(other.inputs for other in about)):
        with head_aside(base) as received:
            model.teacher_forward(**given)
        hidden.append(received[0])
    if model.swaps is None:
        return hidden[0]
    others = align_outputs(about, hidden[1:])
    return torch.cat([hidden[0], *others.hidden, others.valid.unsqueeze(-1).to(hidden[0])], -1)


def _split(model: BALoraModel, states: Tensor) -> tuple[Tensor, SwappedOutputs | None]:
    """Split what `_states` returns, also for selected tokens, into the plain states and the swapped versions'."""
    if model.swaps is None:
        return states, None
    steps = range(1, model.swaps.size)
    hidden, *others = states[..., :-1].chunk(model.swaps.size, -1)
    partners = [model.swaps.partners(step).to(states.device) for step in steps]
    return hidden, SwappedOutputs(others, partners, states[..., -1].bool())


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
