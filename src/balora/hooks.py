"""What a module is given while the model runs, noted."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def noted_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within, the list receives the module's first positional argument at each call."""
    received: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    try:
        yield received
    finally:
        handle.remove()
