"""Modules: evaluation mode, recorded inputs, number of trainable parameters."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context manager: put the model in evaluation mode, and restore each module's mode on exit.

    Modules are restored one by one, since parts of a model may stay in evaluation mode while the rest trains.
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
def recorded_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Context manager: yield a list to which each call of the module appends its first positional argument."""
    received: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    try:
        yield received
    finally:
        handle.remove()


def trainable_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
