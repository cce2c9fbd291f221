"""Weight averaging with the pretrained model after training: W₀ + α·ΔW (WiSE-FT, Wortsman et al. 2022, equation 1).

For a low-rank method ΔW = s·B·A, so scaling B by α gives the average. For a residual method ΔW = s·(B·A − B₀·A₀), and
the average does not fit in rank r: the adapter becomes the plain LoRA of stacked factors that would be saved
(`balora.adapters.saving`), and the base weights become the pretrained ones again.
"""

import math
from dataclasses import replace

import torch
from peft import PeftModel, TaskType
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from balora.adapters.adapted import AdaptedModel
from balora.adapters.matrices import expert_count
from balora.adapters.saving import scale_rank, stack_factors
from balora.adapters.teacher import STUDENT, TEACHER, lora_layers, shift_base_weights
from balora.config import BALoraConfig, renamed
from balora.errors import BALoraError


def check_averaging(config: BALoraConfig, setting: str = "wise_ft") -> None:
    """Check that a model of this configuration can be averaged with the pretrained one.

    Args:
        config: Configuration with its task type filled in.
        setting: What asks for it, for the error.

    Raises:
        BALoraError: If it cannot, with the reason.
    """
    reason = None
    if config.task_type == TaskType.SEQ_CLS:
        reason = "a classifier's head is initialized at random, so there is no pretrained head to average with"
    elif config.use_dora or config.initialization == "dora":
        reason = "DoRA scales whole rows of a weight, so the average is neither a DoRA nor a low-rank change"
    elif config.gated or config.task_names is not None:
        reason = "its change of the weights differs between rows; make it a plain LoRA by merge_at or merge_tasks"
    elif config.residual and config.quantization_config:
        reason = "its base is a residual in 4 bits, from which the pretrained weights cannot be restored"
    elif config.trainable_token_indices:
        reason = "the pretrained vectors of the trained tokens are not kept"
    if reason is not None:
        raise BALoraError(
            f"{setting}: method {config.method!r} cannot be averaged with the pretrained weights: {reason}"
        )


@torch.no_grad()
def average_with_base(model: AdaptedModel, alpha: float) -> None:
    """Set the model's weights to W₀ + α·(W − W₀) in place, fully trained modules included; cannot be undone.

    The result is a plain LoRA, of twice the rank if the method was a residual one.

    Args:
        model: A trained model.
        alpha: α; 1 keeps the trained weights, 0 restores the pretrained ones.

    Raises:
        BALoraError: If the model cannot be averaged, or α is out of range.
    """
    check_averaging(model.balora_config)
    if not 0 <= alpha <= 1:
        raise BALoraError(f"wise_ft: {alpha} is out of range; use a value from 0 to 1")
    if any(layer.merged for layer in lora_layers(model).values()):
        raise BALoraError("wise_ft: the adapter is merged into the weights; call unmerge_adapter() first")
    model.drift = model.drift_rows = None  # measured before, of other weights
    model.after_training = (
        f"After training by `{model.balora_config.method}`, the weights were averaged with the base model's: the "
        f"change was scaled by {alpha:g} (WiSE-FT)."
    )
    if model.balora_config.residual:
        make_plain(model)
    for layer in lora_layers(model).values():
        for parameter in layer.lora_B[STUDENT].parameters():
            parameter.mul_(alpha)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save[STUDENT]
            for own, pretrained in zip(trained.parameters(), module.original_module.parameters(), strict=True):
                own.copy_(torch.lerp(pretrained, own, alpha))


def make_plain(model: AdaptedModel) -> None:
    """Turn a residual adapter into plain LoRA: restore the base, and stack the negated teacher factors."""
    shift_base_weights(model, +1)
    config = model.peft_config[STUDENT]
    for layer in lora_layers(model).values():
        student, teacher = (
            {f"lora_{side}.weight": getattr(layer, f"lora_{side}")[name].weight for side in "AB"}
            for name in (STUDENT, TEACHER)
        )
        stacked = stack_factors(student, teacher, {"lora_A.weight": expert_count(layer)})
        for side in "AB":
            factor = getattr(layer, f"lora_{side}")[STUDENT]
            factor.weight = nn.Parameter(stacked[f"lora_{side}.weight"])
            factor.out_features, factor.in_features = factor.weight.shape
        layer.r[STUDENT] *= 2
        layer.lora_alpha[STUDENT] *= math.sqrt(2) if config.use_rslora else 2
    PeftModel.delete_adapter(model, TEACHER)
    scale_rank(config, 2)
    ranks = {name: getattr(config, name) for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}
    name = renamed(model.balora_config.method, initialization="lora")
    model.balora_config = replace(model.balora_config, method=name, pissa_niter=None, **ranks)
