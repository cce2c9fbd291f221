"""Modules: training flags, inputs and number of trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within, the whole model is in evaluation mode; afterwards every module is as before.

    Module by module, since parts of a model may be kept in evaluation mode while the rest trains.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def noted_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the list receives the module's first positional argument at each call."""
    received: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    try:
        yield received
    finally:
        handle.remove()


def trainable_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
