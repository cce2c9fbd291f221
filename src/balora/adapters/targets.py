"""Which modules and parameters an adapter goes on, checked before it is built, and what PEFT made of them after.

A mixture's experts are no linear layers in Transformers but slices of one parameter, which `target_parameters` names.
"""

import re
import warnings
from dataclasses import replace

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.adapters.matrices import adapted_parameter
from balora.adapters.teacher import STUDENT
from balora.errors import BALoraError

#: Settings that PEFT's adapters of parameters refuse, which see weights and no inputs, and what an error calls them.
WITHOUT_PARAMETERS = {"use_dora": "DoRA", "lora_dropout": "lora_dropout", "lora_bias": "lora_bias"}


def check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """See that every name in `target_modules` matches a module, and every one in `target_parameters` a parameter.

    PEFT itself stops only when none does, and trains on without the misspelt one otherwise.

    Raises:
        BALoraError: Naming the one that matches nothing, and what there is to name; or what PEFT has no adapter of
            parameters for.
    """
    _check_parameters(model, config)
    wanted = config.target_modules
    names = [name for name, _ in model.named_modules()]
    if wanted is None:
        if model.config.model_type not in DEFAULT_TARGETS and not config.target_parameters:
            raise BALoraError(
                f"target_modules: PEFT knows no default for a {model.config.model_type!r} model; name them "
                f"({_linear_names(model)}) or use 'all-linear'"
            )
        return
    if isinstance(wanted, str):
        if wanted != "all-linear" and not any(re.fullmatch(wanted, name) for name in names):
            raise BALoraError(f"target_modules: no module matches {wanted!r}; there are {_linear_names(model)}")
        return
    for target in sorted(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            experts = _fused_names(model)
            besides = f", and for target_parameters {experts}" if experts else ""
            raise BALoraError(f"target_modules: {target!r} matches nothing; there are {_linear_names(model)}{besides}")


def _check_parameters(model: PreTrainedModel, config: LoraConfig) -> None:
    if not config.target_parameters:
        return
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    for target in sorted(config.target_parameters):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            there = _fused_names(model) or "none that holds several experts, so use target_modules"
            raise BALoraError(f"target_parameters: {target!r} matches no matrix; there are {there}")
    for setting, name in WITHOUT_PARAMETERS.items():
        if getattr(config, setting):
            raise BALoraError(
                f"target_parameters: PEFT has no {name} for parameters, only for layers; leave one of the two out"
            )


def refuse_without_parameters(error: ValueError) -> None:
    """Explain PEFT's refusal of experts that the user did not name: it reads `all-linear` as theirs too.

    Raises:
        BALoraError: If that is what the error is about.
    """
    if "ParamWrapper" in str(error):
        raise BALoraError(
            "target_modules: PEFT takes it for the experts too, which are single parameters, and has no such adapter "
            f"of those ({error}); name linear layers one by one, or use method='lora'"
        ) from error


def attention_projections(model: PreTrainedModel) -> list[str]:
    """Endings of the names of all linear layers in attention: `SelfAttention.q`, `self_attn.o_proj`, `attn.c_proj`.

    Raises:
        BALoraError: If there are none in a module that is called attention.
    """
    found = {
        f"{name.rsplit('.', 1)[-1]}.{child}"
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__
        for child, projection in module.named_children()
        if isinstance(projection, (nn.Linear, Conv1D))
    }
    if not found:
        raise BALoraError(
            f"target_modules: {type(model).__name__} has no attention that we know by its name; name the layers to "
            f"adapt ({_linear_names(model)})"
        )
    return sorted(found)


def warn_of_passed_over(model: PeftModel, config: LoraConfig) -> None:
    """Say which linear layers `target_modules` names and PEFT left as they are.

    In some mixtures of experts PEFT 0.21 reads `down_proj` and its like as the routed experts, for the sake of
    adapters from before those were one parameter, and passes over the shared experts and dense layers of that name.

    Args:
        model: Adapted.
        config: As the user gave it.
    """
    if not set(model.peft_config[STUDENT].target_parameters or ()) - set(config.target_parameters or ()):
        return
    base = model.get_base_model()
    wanted = replace(config, target_modules=".*") if config.target_modules == "all-linear" else config
    passed_over = {
        f"{_ending(name)}.weight"
        for name, module in base.named_modules()
        if type(module) is nn.Linear
        and module is not base.get_output_embeddings()
        and ".lora_" not in name
        and not name.endswith(".base_layer")
        and check_target_module_exists(wanted, name)
    }
    if passed_over:
        warnings.warn(
            f"balora: PEFT leaves {', '.join(sorted(passed_over))} without an adapter, though target_modules names "
            "them; to adapt them too, add these names to target_parameters"
        )


def _ending(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _fused_names(model: nn.Module) -> str:
    return ", ".join(sorted({_ending(name) for name, parameter in model.named_parameters() if parameter.ndim == 3}))


def _linear_names(model: nn.Module) -> str:
    layers = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))


def refuse_shared_weights(layers: dict[str, LoraLayer], model: nn.Module) -> None:
    """A residual method may not split a weight that another module uses too (a head tied to the embeddings).

    Raises:
        BALoraError: Naming the layer and what shares its weight.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    for name, layer in layers.items():
        sharing = owners[id(adapted_parameter(layer))]
        if len(sharing) > 1:
            raise BALoraError(
                f"target_modules: {name} shares its weight ({', '.join(sharing)}), and splitting it would "
                "change all of them; leave it out of target_modules or use method='lora'"
            )
