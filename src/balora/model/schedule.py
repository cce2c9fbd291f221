"""λ over training: a factor between 0 and 1 by the training progress, and that of the anchors by the step."""

import math

from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.model.regularizers import TERMS


def schedule_factor(schedule: str, progress: float, *, warmup: float = 0.2, ramp: float = 0.05) -> float:
    """Return the factor on a weight at `progress`, the share of training that is done, 0 to 1.

    `constant` is 1; `cosine` falls from 1 to 0 in a half cosine; `two_phase` is 0 for the `warmup` share, then rises
    linearly to 1 over the `ramp` share (our reading of the paper's "0.2 warm-up and 0.05 ramp").
    """
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < warmup:
        return 0.0
    return min(1.0, (progress - warmup) / ramp) if ramp > 0 else 1.0


def weights_at(config: BALoraConfig, progress: float | None) -> dict[str, float]:
    """Return the present λ of each term that has a schedule or a weight.

    Args:
        config: The settings.
        progress: The share of training that is done; `None` if unknown: then every weight is at its full value.
    """
    weights = {}
    for name, term in TERMS.items():
        full = getattr(config, term.weight)
        if term.schedule is None:
            if full:
                weights[name] = full
            continue
        schedule = getattr(config, term.schedule) if progress is not None else "constant"
        factor = schedule_factor(schedule, progress or 0.0, warmup=config.two_phase_warmup, ramp=config.two_phase_ramp)
        weights[name] = full * factor
    return weights


def anchor_factor(config: BALoraConfig, step: int | None) -> int:
    """Return the factor on the anchors' weight: n in the last of each n optimizer steps, 0 in the others.

    Not the first of them: at LoRA's start the student is the teacher, and the term has no gradient.

    Args:
        config: n is its `anchor_every`.
        step: Optimizer steps taken so far; `None` if unknown.

    Raises:
        BALoraError: If the step is unknown and n is above 1.
    """
    every = config.anchor_every
    if every == 1:
        return 1
    if step is None:
        raise BALoraError(
            f"anchor_every: {every} needs the number of the optimizer step, which is unknown; call "
            "model.set_progress(step / total_steps, step) before each step, add balora.ScheduleCallback() to the "
            "trainer, or use BALoraTrainer"
        )
    return every if (step + 1) % every == 0 else 0


def schedules_of(config: BALoraConfig) -> set[str]:
    """Return the schedules of the terms that have a weight."""
    scheduled = (term for term in TERMS.values() if term.schedule is not None and getattr(config, term.weight))
    return {getattr(config, term.schedule) for term in scheduled}
