"""Full fine-tuning and BitFit: train parameters that the model already has."""

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from balora.adapters.new_modules import heads_to_train
from balora.errors import BALoraError


def make_full(model: PreTrainedModel, *, modules_to_save: list[str] | None = None) -> PreTrainedModel:
    """Set up full fine-tuning: train every parameter.

    Raises:
        BALoraError: If a name in `modules_to_save` matches nothing.
    """
    task_heads(model, modules_to_save)
    return model.requires_grad_(True)


def make_bitfit(model: PreTrainedModel, *, modules_to_save: list[str] | None = None) -> PreTrainedModel:
    """Set up BitFit (Ben Zaken et al. 2022): train every bias, LayerNorms' included, and the task head.

    Args:
        model: Changed in place.
        modules_to_save: Last parts of the names of further modules to train in full, as in PEFT's `LoraConfig`.

    Raises:
        BALoraError: If the model has no biases outside the head, as Llama, T5 and ModernBERT, or a name in
            `modules_to_save` matches nothing.
    """
    freeze_except(model, task_heads(model, modules_to_save))
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
    return model


def task_heads(model: nn.Module, modules_to_save: Iterable[str] | None = None) -> list[str]:
    """Return the names of modules that every method trains in full: the classification head and `modules_to_save`.

    The head is what balora trains beside an adapter in classification: `score` or `classifier`, outside the backbone,
    and what the checkpoint lacks (`balora.adapters.new_modules`); language models have none.

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
    return list(dict.fromkeys([*heads_to_train(model), *(modules_to_save or ())]))


def freeze_except(model: nn.Module, heads: Iterable[str]) -> None:
    """Freeze all parameters except those of modules of these names, or last parts of names, which are set to train."""
    heads = set(heads)
    model.requires_grad_(False)
    for name, module in model.named_modules():
        if name in heads or name.rsplit(".", 1)[-1] in heads:
            module.requires_grad_(True)
