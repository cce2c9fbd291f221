"""The student's second pass, with b of the bias path: the same rows, the same dropout, one more forward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from balora.adapters.bias_path import bias_added
from balora.batches import pick_examples, select_examples
from balora.losses import bias_path_loss
from balora.sharding import is_sharded

if TYPE_CHECKING:
    from balora.model import BALoraModel

RandomState = list[Tensor]


def random_state() -> RandomState:
    """Of what dropout draws from: the CPU's generator and every GPU's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def _restore(state: RandomState) -> None:
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1:])


@contextmanager
def replayed(state: RandomState) -> Iterator[None]:
    """Within, random numbers are those that followed `state`; afterwards they go on as if nothing had been drawn."""
    present = random_state()
    _restore(state)
    try:
        yield
    finally:
        _restore(present)


def bias_path_term(
    model: "BALoraModel",
    represent: Callable[[dict[str, Any], Tensor], Tensor],
    inputs: dict[str, Any],
    plain: Tensor,
    weights: Tensor,
    before: RandomState,
) -> Tensor:
    """The unweighted bias path of a micro-batch whose ordinary pass is done, scalar.

    Both passes drop the same out. Masks are drawn for the whole batch, so of some of its rows there are none to draw
    again: where anything was drawn, these make an ordinary pass of their own too.

    Args:
        model: Its `lora_bias_path` is b.
        represent: From the model's inputs for the rows picked, `(B,)` bool, to their f, `(n, d)`.
        inputs: Of the whole micro-batch.
        plain: f of the ordinary pass, `(B, d)`.
        weights: `(B,)`, the tokens of each row. A row weighs by them, so that with its micro-batch's share it has the
            same weight however a batch is split.
        before: The random state that the ordinary pass began with.
    """
    config, b = model.balora_config, model.lora_bias_path()
    drew = not all(torch.equal(was, now) for was, now in zip(before, random_state(), strict=True))
    picked = pick_examples(len(plain), config.bias_path_sample_rate).to(plain.device)
    part = select_examples(inputs, picked)
    sharded = is_sharded(model)
    if not picked.any():
        if not sharded:
            return 0.0 * b.sum()  # in the graph, as processes that train together want of every parameter
        # All run the same passes; this row counts for nothing.
        picked = torch.arange(len(picked), device=picked.device) == 0
        weights = torch.zeros_like(weights)
        part = select_examples(inputs, picked)
    plain = plain[picked]
    if drew and (not picked.all() or (sharded and config.bias_path_sample_rate < 1)):
        with replayed(before):
            plain = represent(part, picked)
    with replayed(before), bias_added(model.get_base_model(), b, part) as shifted_inputs:
        shifted = represent(shifted_inputs, picked)
    loss = bias_path_loss(shifted, plain, weights=weights[picked], reduction=config.bias_path_reduction)
    chance = config.bias_path_sample_rate * weights.sum().clamp(min=1)
    return loss * weights[picked].sum() / chance
