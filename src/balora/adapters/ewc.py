"""Elastic weight consolidation (Kirkpatrick et al. 2017): a penalty on changes of the weights that texts depend on.

½·Σ F·ΔW² over every entry of every adapted weight, with F the diagonal of the Fisher information at the pretrained
weights. With F a mean over tokens the penalty is, to second order and without F's other entries, the divergence
KL(pretrained ‖ trained) per token on those texts, so that a weight of 1 is comparable to an `anchor_weight` of 1.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.adapters.adapted import AdaptedModel
from balora.adapters.initialization import linear_weight
from balora.adapters.matrices import adapted_matrices
from balora.adapters.model_checks import check_weights_present
from balora.adapters.teacher import STUDENT, TEACHER, adapter_disabled, lora_layers
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.utils.modules import evaluation_mode
from balora.utils.progress import tracked


def check_ewc(config: BALoraConfig) -> None:
    """Check that the change of each weight is a product of factors, which the penalty is of.

    Raises:
        BALoraError: If it is not.
    """
    if config.quantization_config or config.described.four_bit:
        raise BALoraError("ewc_weight: a base in 4 bits has no weights to differentiate by; use 0, or method lora+reg")
    if config.initialization == "dora" or config.use_dora or config.gated or config.task_names:
        raise BALoraError(
            f"ewc_weight: {config.method} changes the weights by more than B·A, or not all rows alike; use 0, or "
            "method lora+reg"
        )


def fisher_diagonals(model: AdaptedModel, batches: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Compute the diagonal of the Fisher information of each adapted weight, `(out, in)` by layer, per token.

    The squared gradient of a text's log-probability, summed over texts and divided by their tokens. Texts that the
    model generated make it an estimate of the Fisher information; other texts give the empirical one.

    Args:
        model: An adapted causal language model; its pretrained function is differentiated.
        batches: `input_ids` and `attention_mask` of texts, `(B, S)` each.

    Raises:
        BALoraError: If a layer is not linear, or its weight not whole here, or there are no texts.
    """
    check_ewc(model.balora_config)
    layers = lora_layers(model)
    check_weights_present(layers, "ewc")
    weights = [layer.get_base_layer().weight for layer in layers.values()]
    for name, layer in layers.items():
        linear_weight(name, layer, "ewc")
    sums = [torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights]
    tokens = 0
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with evaluation_mode(model), torch.enable_grad(), adapter_disabled(model):
            for batch in tracked(list(batches), "Fisher information"):
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True):
                    text = ids[mask].to(model.device)  # (S,)
                    logits = model.get_base_model()(input_ids=text[None], use_cache=False).logits[0, :-1]  # (S − 1, V)
                    loss = F.cross_entropy(logits.float(), text[1:], reduction="sum")
                    for total, gradient in zip(sums, torch.autograd.grad(loss, weights), strict=True):
                        total += gradient.to(total.dtype).square()
                    tokens += len(text) - 1
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    if not tokens:
        raise BALoraError("ewc_weight: there are no texts to protect; give at least one")
    named = zip(layers.items(), sums, strict=True)
    return {name: (total.T if layer.fan_in_fan_out else total) / tokens for (name, layer), total in named}


def ewc_penalty(model: AdaptedModel, fisher: dict[str, Tensor]) -> Tensor:
    """Return ½·Σ F·ΔW² over the adapted weights, with ΔW their change since before training.

    Args:
        model: The adapted model.
        fisher: From `fisher_diagonals`.
    """
    total = 0.0
    for name, layer in lora_layers(model).items():
        (student,) = adapted_matrices(layer, STUDENT)
        change = student.scaling * (student.b @ student.a)  # (out, in)
        if TEACHER in layer.r:
            (start,) = adapted_matrices(layer, TEACHER)
            change = change - start.scaling * (start.b @ start.a)
        total = total + 0.5 * (fisher[name].to(change.device) * change.square()).sum().to(model.device)
    return total
