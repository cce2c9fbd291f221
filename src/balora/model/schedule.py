"""λ over training: a factor between 0 and 1 as a function of the share of training done."""

import math

from balora.config import BALoraConfig


def schedule_factor(schedule: str, progress: float, *, warmup: float = 0.2, ramp: float = 0.05) -> float:
    """What a weight is multiplied by when `progress` of training, 0 to 1, is done.

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
    """The weight of each term now. With progress unknown (`None`) every weight stands at its full value."""
    weights = {}
    for term in ("consistency", "diversity", "spectral"):
        full = getattr(config, f"{term}_weight")
        schedule = getattr(config, f"{term}_schedule") if progress is not None else "constant"
        factor = schedule_factor(schedule, progress or 0.0, warmup=config.two_phase_warmup, ramp=config.two_phase_ramp)
        weights[term] = full * factor
    return weights
