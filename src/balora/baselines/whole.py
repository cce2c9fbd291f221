"""Training parameters that the model already has: all of them, its biases, or its head alone."""

from collections.abc import Iterable

from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn

from balora.errors import BALoraError


def task_heads(model: nn.Module, modules_to_save: Iterable[str] | None = None) -> list[str]:
    """Names of the modules to train in full whatever the method: a classifier's head, and what the caller adds.

    The head is what PEFT trains beside an adapter in classification, `score` or `classifier`, outside the backbone;
    language models have none.

    Raises:
        BALoraError: If a name in `modules_to_save` is the last part of no module's name.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    for wanted in modules_to_save or ():
        if wanted not in names:
            outside = ", ".join(name for name, _ in model.named_children())
            raise BALoraError(
                f"modules_to_save: {wanted!r} matches nothing; give the last part of a module's name, such as "
                f"{outside}"
            )
    heads = [name for name, _ in model.named_children() if name in SEQ_CLS_HEAD_NAMES]
    return list(dict.fromkeys([*heads, *(modules_to_save or ())]))


def freeze_but(model: nn.Module, heads: Iterable[str]) -> None:
    """Freeze everything except the modules whose name's last part is in `heads`; those are set to train."""
    heads = set(heads)
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in heads:
            module.requires_grad_(True)


def train_all(model: nn.Module) -> None:
    """Full fine-tuning: every parameter trains."""
    model.requires_grad_(True)


def train_biases(model: nn.Module, heads: Iterable[str]) -> None:
    """BitFit (Ben Zaken et al. 2022): every bias trains, LayerNorms' included, and the task head; nothing else.

    Args:
        model: Changed in place.
        heads: See `freeze_but`.

    Raises:
        BALoraError: If no bias is left beside the heads' own, as in Llama, T5 or ModernBERT.
    """
    freeze_but(model, heads)
    # By the parameter's own name: T5's `relative_attention_bias.weight` is a table, DeBERTa's `q_bias` is a bias.
    biases = [
        parameter
        for name, parameter in model.named_parameters()
        if name.rsplit(".", 1)[-1].split("_")[-1] == "bias" and not parameter.requires_grad
    ]
    if not biases:
        raise BALoraError(
            f"method: bitfit trains biases and {type(model).__name__} has none; use full, houlsby or pfeiffer"
        )
    for parameter in biases:
        parameter.requires_grad = True
