"""Averaging with the pretrained weights after training: W₀ + α·ΔW (WiSE-FT, Wortsman et al. 2022, equation 1).

What a low-rank method trained is ΔW itself, so the average is an adapter again: s·B·A with B made α times as large.
A residual method's is s·(B·A − B₀·A₀), whose average has no form of that rank; it becomes the plain LoRA of stacked
factors as which it would be saved (`balora.adapters.saving`), and the base is the pretrained one again.
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
from balora.adapters.teacher import STUDENT, TEACHER, lora_layers, move_base
from balora.config import SELORA, BALoraConfig
from balora.errors import BALoraError


def check_averaging(config: BALoraConfig) -> None:
    """See that what was trained can be averaged with what was pretrained.

    Args:
        config: With its task type.

    Raises:
        BALoraError: Saying why it cannot.
    """
    reason = None
    if config.task_type == TaskType.SEQ_CLS:
        reason = "a classifier's head starts random, so there is no pretrained one to average with"
    elif config.use_dora or config.method == "dora":
        reason = "DoRA scales whole rows of a weight, so the average of two is no DoRA and no low-rank change"
    elif config.method == SELORA or config.task_names is not None:
        reason = "the change of the weights differs from row to row; merge_at or merge_tasks makes it one LoRA"
    elif config.residual and config.quantization_config:
        reason = "its base is a residual in 4 bits, which cannot become the pretrained one again"
    elif config.trainable_token_indices:
        reason = "of the tokens that are trained beside the adapter no pretrained vectors are kept"
    if reason is not None:
        raise BALoraError(
            f"wise_ft: method {config.method!r} cannot be averaged with the pretrained weights: {reason}"
        )


@torch.no_grad()
def average_with_base(model: AdaptedModel, alpha: float) -> None:
    """Make the model's weights W₀ + α·(W − W₀) in place, modules trained in full among them; there is no way back.

    It is a plain LoRA afterwards, of twice the rank where it was a residual method's.

    Args:
        model: A trained one.
        alpha: 1 leaves the weights as they were trained, 0 makes them the pretrained ones.

    Raises:
        BALoraError: If they cannot be averaged, or α is not a share.
    """
    check_averaging(model.balora_config)
    if not 0 <= alpha <= 1:
        raise BALoraError(f"wise_ft: {alpha} is not a share of the trained weights; use one from 0 to 1")
    if any(layer.merged for layer in lora_layers(model).values()):
        raise BALoraError("wise_ft: the adapter is merged into the weights; call unmerge_adapter() first")
    if model.balora_config.residual:
        _make_plain(model)
    for layer in lora_layers(model).values():
        for parameter in layer.lora_B[STUDENT].parameters():
            parameter.mul_(alpha)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            trained = module.modules_to_save[STUDENT]
            for own, pretrained in zip(trained.parameters(), module.original_module.parameters(), strict=True):
                own.copy_(torch.lerp(pretrained, own, alpha))


def _make_plain(model: AdaptedModel) -> None:
    """Put the teacher's part back into the base, and its negative into the student's factors: the same function."""
    move_base(model, +1)
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
    model.balora_config = replace(model.balora_config, method="lora", pissa_niter=None, **ranks)
