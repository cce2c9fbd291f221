"""Which modules an adapter goes on, checked before anything is built."""

import re

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError


def check_targets(model: PreTrainedModel, config: LoraConfig) -> None:
    """See that every name in `target_modules` matches a module.

    PEFT itself stops only when none does, and trains on without the misspelt one otherwise.

    Raises:
        BALoraError: Naming the one that matches nothing, and the linear layers there are.
    """
    wanted = config.target_modules
    names = [name for name, _ in model.named_modules()]
    if wanted is None:
        if model.config.model_type not in DEFAULT_TARGETS:
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
            raise BALoraError(f"target_modules: {target!r} matches nothing; there are {_linear_names(model)}")


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
        sharing = owners[id(layer.get_base_layer().weight)]
        if len(sharing) > 1:
            raise BALoraError(
                f"target_modules: {name} shares its weight ({', '.join(sharing)}), and splitting it would "
                "change all of them; leave it out of target_modules or use method='lora'"
            )
