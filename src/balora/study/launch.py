"""`balora train` on several processes: one owns the folder, builds, samples, measures and writes; all of them train.

`accelerate launch` or `torchrun` starts them with the same command line. If every process holds the whole model, the
others end with training; if the model is sharded over them, they stay until it is measured and gathered.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn

import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState

from balora.baselines import BASELINES
from balora.errors import BALoraError, WorkerDone
from balora.recipe import Recipe
from balora.study.terminal import ProgressCallback
from balora.utils.distributed import is_distributed, is_main_process, is_sharded_launch
from balora.world import build_world
from balora.world.reading import build_reading_world

#: The launcher's variables that a trainer must not see while it works alone.
LAUNCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
#: Timeout of collectives: the others wait while the first process reads a model, samples from it and decomposes it.
TIMEOUT = timedelta(hours=6)
#: Settings of measurements that need more than forward passes of the whole model.
ON_ONE_DEVICE = ("benchmarks", "geometry", "noise_kinds", "qa_format")


def refuse_distributed(command: str) -> None:
    """Raise if a command that trains many runs was launched on several processes, which would all repeat them.

    Raises:
        BALoraError: If this is one of several processes.
    """
    if is_distributed():
        raise BALoraError(
            f"{command}: it runs in one process; only `balora train` can be started by accelerate launch or torchrun"
        )


@contextmanager
def distributed_run(recipe: Recipe) -> Iterator[None]:
    """Context manager: connect the processes of a run; a process whose part is done ends here, with status 0.

    Raises:
        BALoraError: If the model is sharded and the recipe's method or measurements do not support that.
    """
    if not is_distributed():
        yield
        return
    if is_sharded_launch():
        _check_sharded(recipe)
    if is_main_process():
        with _without_launcher():
            _build_worlds(recipe)
    _connect(recipe)
    try:
        yield
    except WorkerDone:
        _leave()


def _leave() -> NoReturn:
    """End a process whose part is done, without Python's and the libraries' own way out.

    It has nothing left to write. That way joins threads, and destroys a process group that others still have: whatever
    waits there for ever keeps the launcher waiting too, after the first process is long gone. An error needs no such
    end, since the launcher kills what is left then.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _check_sharded(recipe: Recipe) -> None:
    if recipe.method in BASELINES:
        raise BALoraError(
            f"method: {recipe.method} cannot be saved from weights that are sharded over processes; train it under DDP"
        )
    for name in ON_ONE_DEVICE:
        if getattr(recipe, name):
            raise BALoraError(
                f"{name}: not measured while the model is sharded over processes; leave it out, and run `balora "
                "evaluate` on the adapter"
            )


def _connect(recipe: Recipe) -> None:
    cpu = bool(recipe.training_arguments.get("use_cpu")) or not torch.accelerator.is_available()
    if cpu:
        # Without an accelerator, a trainer finds the other processes only if this variable is set.
        os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState(cpu=cpu, timeout=TIMEOUT)


@contextmanager
def _without_launcher() -> Iterator[None]:
    """Context manager: hide the launcher's variables, so that a trainer works alone before processes connect."""
    hidden = {name: os.environ.pop(name) for name in LAUNCH_VARIABLES if name in os.environ}
    hidden |= {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("ACCELERATE_", "FSDP_"))}
    try:
        yield
    finally:
        os.environ |= hidden
        AcceleratorState._reset_state(reset_partial_state=True)


def _build_worlds(recipe: Recipe) -> None:
    callbacks = (ProgressCallback("pretraining the world's model"),)
    if recipe.world is not None:
        build_world(recipe.world, callbacks=callbacks)
    if recipe.reading_world is not None:
        build_reading_world(recipe.reading_world, callbacks=callbacks)
