"""Checks of the model that gets an adapter: no adapter yet, weights present and not shared, a head to train."""

from typing import NoReturn

from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from balora.adapters.matrices import adapted_parameter
from balora.adapters.teacher import lora_layers
from balora.errors import BALoraError
from balora.utils.distributed import is_zero3


def check_unadapted(model: nn.Module) -> None:
    """Check that a model has no adapter yet.

    Raises:
        BALoraError: If it is a PEFT model, or holds adapter layers that an earlier call or Transformers, which loads
            an adapter's folder as its base with that adapter, has put there.
    """
    if isinstance(model, PeftModel):
        raise BALoraError(
            f"model: it is a {type(model).__name__}, which has an adapter already; give the base model, such as "
            "model.unload() returns"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise BALoraError(
            f"model: {model.name_or_path} was loaded with an adapter, which would be ignored; merge it into the base "
            "first (PeftModel.from_pretrained(base, adapter).merge_and_unload()), and give the merged model"
        )
    adapted = next((name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)), None)
    if adapted is not None:
        raise BALoraError(
            f"model: {adapted} has an adapter from an earlier call, which changes the base in place; load the base "
            "again, or call unload() on the model of that call"
        )


def check_shared_weights(adapted: PeftModel, *, embeddings_only: bool = False) -> None:
    """Check that no adapter changes a weight that another module shares (a head tied to the embeddings).

    A residual method would split the weight for both modules, and merging would change both.

    Args:
        adapted: The adapted model.
        embeddings_only: Allow weights that are shared by other modules than embeddings and head.

    Raises:
        BALoraError: If one does; it names the layer and the parameters that share its weight.
    """
    base = adapted.get_base_model()
    owners: dict[int, list[str]] = {}
    for name, parameter in base.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.replace(".base_layer", ""))
    ends = [module for module in (base.get_input_embeddings(), base.get_output_embeddings()) if module is not None]
    tied = {id(module.weight) for module in ends}
    for name, layer in lora_layers(adapted).items():
        parameter = adapted_parameter(layer)
        sharing = owners[id(parameter)]
        if len(sharing) > 1 and not (embeddings_only and id(parameter) not in tied):
            raise BALoraError(
                f"target_modules: {name} shares its weight ({', '.join(sharing)}), and splitting it, or merging its "
                "adapter, would change all of them; leave it out of target_modules"
            )


def check_head_untargeted(model: PreTrainedModel, config: LoraConfig) -> None:
    """Check that a configuration targets no head, for training by TRL, which multiplies by the head's weight itself.

    Raises:
        BALoraError: If it does.
    """
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    named = config.target_modules not in (None, "all-linear")
    if name is not None and named and check_target_module_exists(config, name):
        _refuse_head(name)


def check_head_unadapted(model: nn.Module) -> None:
    """Check that a model's head has no adapter, as `check_head_untargeted`.

    Raises:
        BALoraError: If it has one.
    """
    head = model.get_output_embeddings()
    if isinstance(head, BaseTunerLayer):
        _refuse_head(next(name for name, module in model.named_modules() if module is head))


def _refuse_head(name: str) -> NoReturn:
    raise BALoraError(
        f"target_modules: TRL's trainers do not train an adapter on {name.rsplit('.', 1)[-1]}; leave it out, and name "
        "it in modules_to_save to train it in full"
    )


def check_weights_present(layers: dict[str, LoraLayer], method: str) -> None:
    """Check that a residual method can decompose each layer's weight: not sharded, and loaded in this process.

    Raises:
        BALoraError: If a weight is sharded or not loaded; it names the layer.
    """
    for name, layer in layers.items():
        weight = next(layer.get_base_layer().parameters())
        if isinstance(weight, DTensor) or is_zero3(weight):
            raise BALoraError(
                f"method: {method} decomposes whole weights, and {name} is sharded (by tensor parallelism, or as it "
                "was loaded); let the trainer shard the model, or use method='lora'"
            )
        if weight.is_meta:
            raise BALoraError(
                f"method: {method} decomposes weights, and {name} is not loaded in this process; load it in every "
                "process (fsdp_cpu_ram_efficient_loading: false), or use method='lora'"
            )
