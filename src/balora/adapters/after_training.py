"""Changes of what was learned, after training: intruder dimensions removed, small or random entries dropped.

Each is of the change of the weights ΔW = s·B·A, against the pretrained W, and gives an exact plain LoRA: of a few more
rows for intruder dimensions, of full rank min(out, in) where single entries of ΔW are dropped, with files as large.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from peft.tuners.lora import Linear
from peft.utils.merge_utils import magnitude_based_pruning, random_pruning
from torch import Tensor, nn

from balora.adapters.adapted import AdaptedModel
from balora.adapters.averaging import check_averaging, make_plain
from balora.adapters.initialization import exact, linear_weight
from balora.adapters.matrices import adapted_matrices
from balora.adapters.teacher import STUDENT, lora_layers
from balora.config import BALoraConfig, renamed
from balora.errors import BALoraError

#: Leading left singular vectors of a trained weight that may be intruders, and the cosine to every pretrained one
#: below which they are (Shuttleworth et al. 2024; PEFT's defaults).
TOP_K, LARGEST_COSINE = 10, 0.5

#: What is done to the change of the weights, for the model card, by the recipe's name.
CHANGES = {
    "intruders": "intruder dimensions were scaled by {:g}",
    "trim": "all but the largest entries of what was learned, a share of {:g} of each matrix, were set to 0 (TIES)",
    "dare": "a random share of {:g} of the entries of what was learned was kept and rescaled (DARE)",
}


def reduce_intruders(weight: Tensor, change: Tensor, share: float) -> Tensor:
    """Return ΔW `(out, in)` with `share` of each intruder dimension left: ΔW − (1 − share)·Σ σ_i·u_i·v_iᵀ.

    The sum is over those of the 10 leading singular triplets of W + ΔW whose u has a cosine below 0.5 to each left
    singular vector of W (Shuttleworth et al. 2024, 2410.21228, algorithm 1 and section 6).

    Args:
        weight: W `(out, in)`.
        change: ΔW `(out, in)`.
        share: 1 leaves ΔW, 0 removes the intruders.
    """
    known = torch.linalg.svd(weight, full_matrices=False).U  # (out, k)
    u, s, vh = torch.linalg.svd(weight + change, full_matrices=False)
    cosines = (u[:, :TOP_K].T @ known).abs().amax(1)  # (K,)
    new = (cosines < LARGEST_COSINE).nonzero()[:, 0]
    return change - (1 - share) * (u[:, new] * s[new]) @ vh[new]


def check_after_training(config: BALoraConfig, changes: dict[str, float]) -> None:
    """Check that a model of this configuration can be changed after training as a recipe asks.

    Args:
        config: Configuration with its task type filled in.
        changes: At most one name of `CHANGES`, and its share.

    Raises:
        BALoraError: If it cannot, or the name or the share is wrong.
    """
    if not changes:
        return
    if len(changes) > 1 or not changes.keys() <= CHANGES.keys():
        raise BALoraError(f"after_training: {changes} does not name one change; use one of {', '.join(CHANGES)}")
    ((name, share),) = changes.items()
    if not isinstance(share, int | float) or not (0 <= share < 1 if name == "intruders" else 0 < share < 1):
        raise BALoraError(f"after_training: {name}: {share} is not a share to keep; use a number between 0 and 1")
    check_averaging(config, "after_training")
    if config.target_parameters:
        raise BALoraError(
            "after_training: only linear layers can be changed, not experts; leave target_parameters out"
        )


def check_changeable(model: AdaptedModel) -> None:
    """Check that all adapted layers are linear, with weights that are not quantized.

    Raises:
        BALoraError: Naming a layer that is not.
    """
    for name, layer in lora_layers(model).items():
        if not isinstance(layer, Linear):
            base = type(layer.get_base_layer()).__name__
            raise BALoraError(
                f"after_training: {name} is a {base}, and only linear layers in full precision can be changed; leave "
                "it out of target_modules"
            )


@torch.no_grad()
def change_after_training(model: AdaptedModel, name: str, share: float, *, seed: int = 0) -> None:
    """Change what a trained model learned, in place; cannot be undone. The result is a plain LoRA.

    Args:
        model: A trained model.
        name: `intruders` (`reduce_intruders`), `trim` (TIES-merging of a single task vector, Yadav et al. 2023: of
            each matrix the largest entries stay) or `dare` (Yu et al. 2024: random ones stay, divided by their share).
        share: What stays of the intruder dimensions, or of the entries.
        seed: Of `dare`; the global generator is restored.

    Raises:
        BALoraError: If the model cannot be changed so, or its adapter is merged.
    """
    check_after_training(model.balora_config, {name: share})
    check_changeable(model)
    if any(layer.merged for layer in lora_layers(model).values()):
        raise BALoraError("after_training: the adapter is merged into the weights; call unmerge_adapter() first")
    change: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "intruders": lambda weight, delta: reduce_intruders(weight, delta, share),
        "trim": lambda _, delta: magnitude_based_pruning(delta, share),
        "dare": lambda _, delta: random_pruning(delta, share, rescale=True),
    }
    model.drift = model.drift_rows = None  # measured before, of other weights
    done = f"After training by `{model.balora_config.method}`, {CHANGES[name].format(share)}."
    model.after_training = f"{model.after_training} {done}".lstrip()
    if model.balora_config.residual:
        make_plain(model)
    config = model.peft_config[STUDENT]
    ranks, alphas = {}, {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for key, layer in lora_layers(model).items():
            weight = exact(linear_weight(key, layer, "after_training"))  # (out, in)
            (matrix,) = adapted_matrices(layer, STUDENT)
            changed = change[name](weight, exact(matrix.scaling * (matrix.b @ matrix.a)))  # (out, in)
            u, s, vh = torch.linalg.svd(changed / matrix.scaling, full_matrices=False)
            rank = len(s) if name != "intruders" else min(len(s), layer.r[STUDENT] + TOP_K)
            factors = {"A": s[:rank].sqrt()[:, None] * vh[:rank], "B": u[:, :rank] * s[:rank].sqrt()}
            for side, value in factors.items():
                factor = getattr(layer, f"lora_{side}")[STUDENT]
                factor.__class__ = nn.Linear  # of oplora, whose change is final now
                factor.weight = nn.Parameter(value.to(factor.weight.dtype).contiguous())
                factor.out_features, factor.in_features = value.shape
            root = math.sqrt(rank) if config.use_rslora else rank
            layer.r[STUDENT], layer.lora_alpha[STUDENT] = rank, matrix.scaling * root
            ranks[key], alphas[key] = rank, matrix.scaling * root
    config.rank_pattern, config.alpha_pattern = ranks, alphas
    own = {"rank_pattern": ranks, "alpha_pattern": alphas, "pissa_niter": None}
    start = "rslora" if model.balora_config.initialization == "rslora" else "lora"
    method = renamed(model.balora_config.method, initialization=start)
    model.balora_config = replace(model.balora_config, method=method, **own)
