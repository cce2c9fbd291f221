"""`balora train` on several processes: one claims the folder, builds, samples, measures and writes; all train.

`accelerate launch` or `torchrun` starts them, each with the same command line. Where every process holds the whole
model, the others end when training does; where it is spread over them, they go on until it is measured and gathered.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from balora.baselines import BASELINES
from balora.errors import BALoraError, WorkerDone
from balora.utils.distributed import is_distributed, is_main_process, is_sharded_launch

if TYPE_CHECKING:
    from balora.recipe import Recipe

#: What the launcher tells each process, and a trainer that is to work alone must not see.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
#: What waits for the first process may wait for a model to be read, sampled from and decomposed.
PATIENCE = timedelta(hours=6)
#: Settings that measure with more than forward passes of the whole model.
ON_ONE_DEVICE = ("benchmarks", "geometry", "noise_kinds", "qa_format")


def refuse_distributed(command: str) -> None:
    """Stop a command that is made of many runs, which processes side by side would all repeat.

    Raises:
        BALoraError: If this is one of several processes.
    """
    if is_distributed():
        raise BALoraError(
            f"{command}: it runs in one process; only `balora train` is started by accelerate launch or torchrun"
        )


@contextmanager
def distributed_run(recipe: "Recipe") -> Iterator[None]:
    """Within, the processes of a run know one another; one that has done its part leaves quietly.

    Raises:
        BALoraError: If the recipe trains or measures what a model that is spread over them cannot be.
    """
    if not is_distributed():
        yield
        return
    if is_sharded_launch():
        _refuse_spread(recipe)
    if is_main_process():
        with _alone():
            _build_worlds(recipe)
    _join(recipe)
    with suppress(WorkerDone):
        yield
    if not is_main_process():
        torch.distributed.destroy_process_group()


def _refuse_spread(recipe: "Recipe") -> None:
    if recipe.method in BASELINES:
        raise BALoraError(
            f"method: {recipe.method} is not saved from weights that are spread over processes; train it under DDP"
        )
    for name in ON_ONE_DEVICE:
        if getattr(recipe, name):
            raise BALoraError(
                f"{name}: not measured while the model is spread over processes; leave it out, and run `balora "
                "evaluate` on the adapter"
            )


def _join(recipe: "Recipe") -> None:
    from accelerate import PartialState

    cpu = bool(recipe.training_arguments.get("use_cpu")) or not torch.accelerator.is_available()
    if cpu:
        # A trainer asks the environment, and finds itself alone where there is neither a device nor this.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState(cpu=cpu, timeout=PATIENCE)


@contextmanager
def _alone() -> Iterator[None]:
    """Within, a trainer works by itself, as the process does not know of others yet."""
    from accelerate.state import AcceleratorState

    kept = {name: os.environ.pop(name) for name in PLACE if name in os.environ}
    launched = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("ACCELERATE_", "FSDP_"))}
    try:
        yield
    finally:
        os.environ |= kept | launched
        AcceleratorState._reset_state(reset_partial_state=True)


def _build_worlds(recipe: "Recipe") -> None:
    from balora.study.progress import ProgressCallback
    from balora.world import build_world
    from balora.world.reading import build_reading_world

    callbacks = (ProgressCallback("pretraining the world's model"),)
    if recipe.world is not None:
        build_world(recipe.world, callbacks=callbacks)
    if recipe.reading_world is not None:
        build_reading_world(recipe.reading_world, callbacks=callbacks)
