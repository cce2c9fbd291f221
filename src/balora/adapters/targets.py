"""Target modules and parameters of an adapter: what all-linear means, and checks of the names that were given.

In Transformers a mixture's experts are not linear layers but slices of one parameter, named in `target_parameters`.
"""

import inspect
import re
import warnings
from dataclasses import replace

from peft import LoraConfig, PeftModel, TaskType
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.adapters.matched_names import check_matched_names
from balora.adapters.teacher import STUDENT
from balora.errors import BALoraError

#: Settings that PEFT refuses for `target_parameters`, since such adapters see no inputs, and their names in errors.
WITHOUT_PARAMETERS = {"use_dora": "DoRA", "lora_dropout": "lora_dropout", "lora_bias": "lora_bias"}
#: Error for a target in `modules_to_save`.
TRAINED_IN_FULL = (
    "target_modules: {target} is trained in full, by modules_to_save or as part of the classification head, so it "
    "cannot have an adapter too; leave it out of target_modules"
)


def check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """Check that every name in `target_modules` matches a module, in `target_parameters` a parameter, and so on.

    PEFT itself raises only if no name matches, and otherwise silently ignores a misspelt one.

    Raises:
        BALoraError: If a name matches nothing (it lists what exists), or PEFT refuses a setting for parameters.
    """
    _check_parameters(model, config)
    _check_modules(model, config)
    check_matched_names(model, config)


def _check_modules(model: PreTrainedModel, config: LoraConfig) -> None:
    wanted = config.target_modules
    names = [name for name, _ in model.named_modules()]
    if wanted is None:
        if model.config.model_type not in DEFAULT_TARGETS and not config.target_parameters:
            raise BALoraError(
                f"target_modules: PEFT knows no default for a {model.config.model_type!r} model; give names "
                f"({_linear_names(model)}) or 'all-linear'"
            )
        return
    if isinstance(wanted, str):
        if wanted != "all-linear" and not any(re.fullmatch(wanted, name) for name in names):
            raise BALoraError(f"target_modules: no module matches {wanted!r}; there are {_linear_names(model)}")
        return
    for target in sorted(wanted):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            experts = _fused_names(model)
            more = f", and for target_parameters {experts}" if experts else ""
            raise BALoraError(f"target_modules: {target!r} matches nothing; there are {_linear_names(model)}{more}")


def narrow_all_linear(model: PreTrainedModel, config: LoraConfig) -> None:
    """Exclude from `all-linear`, in place, the linear layers that an adapter cannot or should not change.

    These are the layers trained in full, those whose weights the model reads without calling the layer (in blocks of
    state-space models), and those outside the language model (a vision tower). Warns about the last two kinds.

    Args:
        model: The base model.
        config: Its `exclude_modules` is extended; unchanged for other targets.
    """
    if config.target_modules != "all-linear":
        return
    linear = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    in_full = tuple(config.modules_to_save or ())
    if config.task_type == TaskType.SEQ_CLS:
        in_full += tuple(SEQ_CLS_HEAD_NAMES)
    # PEFT trains in full what ends so (DistilBERT's pre_classifier), and compares whole names when it adapts.
    saved = {name for name in linear if in_full and name.endswith(in_full)}
    outside = _outside_language_model(model, linear)
    read = _read_weights(model)
    for names, reason in (
        (outside, "which are not part of the language model"),
        (read - outside, "whose weights the model reads without calling the layer"),
    ):
        if names:
            warnings.warn(
                f"balora: all-linear leaves out {', '.join(sorted({_ending(name) for name in names}))}, {reason}"
            )
    excluded, given = saved | outside | read, config.exclude_modules
    if isinstance(given, str):
        config.exclude_modules = "|".join([f"(?:{given})", *map(re.escape, sorted(excluded))])
    elif excluded:
        config.exclude_modules = {*(given or ()), *excluded}


def check_not_in_full(model: PreTrainedModel, config: LoraConfig) -> None:
    """Check that no target names only modules that are trained in full, which PEFT would leave out or refuse.

    Raises:
        BALoraError: If one does.
    """
    in_full = tuple(f".{name}" for name in config.modules_to_save or ())
    for target in () if isinstance(config.target_modules, str) else sorted(config.target_modules or ()):
        names = [f".{name}" for name, _ in model.named_modules() if f".{name}".endswith(f".{target}")]
        if names and all(name.endswith(in_full) for name in names):
            raise BALoraError(TRAINED_IN_FULL.format(target=repr(target)))


def check_called_layers(model: PreTrainedModel, config: LoraConfig) -> None:
    """Check that no target is a layer of a state-space block that the model never calls.

    Raises:
        BALoraError: If one is: its adapter would change nothing, and a residual method would change the model.
    """
    if config.target_modules is None or config.target_modules == "all-linear":
        return
    for name in sorted(_read_weights(model)):
        # With a fused kernel others are read too, but dt_proj is on every path.
        if name.endswith("dt_proj") and check_target_module_exists(config, name):
            raise BALoraError(
                f"target_modules: {name} is never called, since {type(model).__name__} only reads its weight, so an "
                "adapter on it would have no effect; leave it out"
            )


def _outside_language_model(model: PreTrainedModel, names: list[str]) -> set[str]:
    """Return the layers outside the decoder of a model whose text model is only a part."""
    text = model.config.get_text_config()
    if text is model.config or model.config.is_encoder_decoder:
        return set()
    decoder = model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    head = model.get_output_embeddings()
    inside = {name for name, module in model.named_modules() if module is head}
    return {name for name in names if prefix and not name.startswith(f"{prefix}.") and name not in inside}


def _read_weights(model: PreTrainedModel) -> set[str]:
    """Return the linear layers of state-space blocks whose weights the block's code reads directly."""
    found = set()
    for name, block in model.named_modules():
        if not hasattr(block, "A_log"):
            continue
        try:
            code = inspect.getsource(type(block))
        except (OSError, TypeError):
            continue
        for child, module in block.named_children():
            if isinstance(module, nn.Linear) and re.search(rf"self\.{child}\.weight(?!\.)", code):
                found.add(f"{name}.{child}")
    return found


def _check_parameters(model: PreTrainedModel, config: LoraConfig) -> None:
    if not config.target_parameters:
        return
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    for target in sorted(config.target_parameters):
        if not any(name == target or name.endswith(f".{target}") for name in names):
            fused = _fused_names(model)
            remedy = f"there are {fused}" if fused else "no parameter holds several experts, so use target_modules"
            raise BALoraError(f"target_parameters: {target!r} matches no matrix; {remedy}")
    for setting, name in WITHOUT_PARAMETERS.items():
        if getattr(config, setting):
            raise BALoraError(
                f"target_parameters: PEFT has no {name} for parameters, only for layers; leave out one of the two"
            )


def explain_peft_error(error: Exception) -> None:
    """Explain PEFT's errors about targets: experts that `all-linear` includes, a layer that it cannot adapt.

    Raises:
        BALoraError: If the error is about such a target.
    """
    if "modules_to_save cannot be applied" in str(error):
        raise BALoraError(TRAINED_IN_FULL.format(target="a layer")) from error
    if isinstance(error, NoMatchingPeftModuleError):
        raise BALoraError(f"target_modules, exclude_modules: no layer is left to adapt ({error})") from error
    if "incompatible with Mamba" in str(error):
        raise BALoraError(f"target_modules: {error}") from error
    if "ParamWrapper" in str(error):
        raise BALoraError(
            "target_modules: PEFT includes the experts, which are single parameters, and has no such adapter for "
            f"them ({error}); name linear layers one by one, or use method='lora'"
        ) from error


def attention_projections(model: PreTrainedModel) -> list[str]:
    """Return name endings of all linear layers in attention: `SelfAttention.q`, `self_attn.o_proj`, `attn.c_proj`.

    Raises:
        BALoraError: If no module whose class name contains "Attention" has any.
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
            f"target_modules: {type(model).__name__} has no module whose class name contains Attention; name the "
            f"layers to adapt ({_linear_names(model)})"
        )
    return sorted(found)


def warn_about_skipped_layers(model: PeftModel, config: LoraConfig) -> None:
    """Warn about linear layers that `target_modules` names and PEFT did not adapt.

    In some mixtures of experts PEFT 0.21 takes names such as `down_proj` for the routed experts, for compatibility
    with adapters from before those were one parameter, and skips shared experts and dense layers of that name.

    Args:
        model: The adapted model.
        config: The user's configuration.
    """
    if not set(model.peft_config[STUDENT].target_parameters or ()) - set(config.target_parameters or ()):
        return
    base = model.get_base_model()
    wanted = replace(config, target_modules=".*") if config.target_modules == "all-linear" else config
    skipped = {
        f"{_ending(name)}.weight"
        for name, module in base.named_modules()
        if type(module) is nn.Linear
        and module is not base.get_output_embeddings()
        and ".lora_" not in name
        and not name.endswith(".base_layer")
        and check_target_module_exists(wanted, name)
    }
    if skipped:
        warnings.warn(
            f"balora: PEFT skipped {', '.join(sorted(skipped))}, which target_modules names; to adapt them too, add "
            "these names to target_parameters"
        )


def _ending(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _fused_names(model: nn.Module) -> str:
    return ", ".join(sorted({_ending(name) for name, parameter in model.named_parameters() if parameter.ndim == 3}))


def _linear_names(model: nn.Module) -> str:
    layers = (name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D)))
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in layers}))
