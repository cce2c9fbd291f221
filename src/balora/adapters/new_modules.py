"""Modules that the base's checkpoint lacks, whose weights `from_pretrained` draws at random.

A classifier has more of them than its last layer: DistilBERT's `pre_classifier`, ModernBERT's `head`, BERT's pooler.
They differ in every process, so they are trained with the head and saved with the adapter.
"""

import os
from collections.abc import Iterable, Mapping

from peft import PeftModel
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.errors import BALoraError

#: Attribute of a newly initialized module; PEFT's copies of the module keep it.
MARK = "newly_initialized"
#: Modules beside a classifier's last layer that Transformers may draw at random. A base in 4 bits keeps them whole,
#: since which of them are new is known only after loading.
BESIDE_HEAD = ("pre_classifier", "pooler", "head", "sequence_summary", "classification_head", "logits_proj")


def mark_new_modules(model: PreTrainedModel) -> list[str]:
    """Mark the newly initialized modules, and return their names, each the outermost that is wholly new.

    Models that no checkpoint was loaded into have none. Call this before adapters are added.
    """
    loaded = [name for name, parameter in model.named_parameters() if _is_loaded(parameter)]
    if not loaded:
        return []
    embeddings = model.get_input_embeddings()  # new after resize_token_embeddings
    names = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in names) or module is embeddings:
            continue
        parameters = dict(module.named_parameters())
        own = dict(module.named_parameters(recurse=False))
        if (parameters and not any(map(_is_loaded, parameters.values()))) or not all(map(_is_loaded, own.values())):
            setattr(module, MARK, True)
            names.append(name)
    return names


def heads_to_train(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that every method trains in full and saves: a classifier's head and new ones."""
    heads = [name for name, _ in model.named_children() if name in SEQ_CLS_HEAD_NAMES]
    classifies = any(cls.__name__.endswith("ForSequenceClassification") for cls in type(model).__mro__)
    return list(dict.fromkeys([*heads, *(mark_new_modules(model) if classifies else ())]))


def with_heads(model: PreTrainedModel, modules_to_save: Iterable[str] | None) -> list[str] | None:
    """Return an adapter's `modules_to_save` with the classifier's heads that PEFT does not add itself."""
    # PEFT trains every module whose name ends in a head's, such as DistilBERT's `pre_classifier`, but unless it is
    # named here it puts a LoRA on it as well, and fails.
    heads = [name for name, _ in model.named_children() if name.endswith(tuple(SEQ_CLS_HEAD_NAMES))]
    added = [name for name in (*heads, *heads_to_train(model)) if name not in SEQ_CLS_HEAD_NAMES]
    return list(dict.fromkeys([*(modules_to_save or []), *added])) or modules_to_save


def check_new_modules_saved(model: PreTrainedModel, folder: str | os.PathLike, state: Mapping[str, Tensor]) -> None:
    """Check that an adapter has the weights of a classifier's newly initialized modules.

    Args:
        model: The base model, before the adapter is added.
        folder: The adapter's folder, for the error.
        state: The adapter's tensors.

    Raises:
        BALoraError: If one is missing, so that its weights would be random.
    """
    new = mark_new_modules(model)
    for name, _ in model.named_parameters():
        if any(name.startswith(f"{module}.") for module in new) and not name_in(state, name):
            raise BALoraError(
                f"adapter: {folder} has no {name}, and neither has the base's checkpoint, so its weights would be "
                "random; train again, or give the base with the weights that the adapter was trained with"
            )


def name_in(state: Mapping[str, Tensor], name: str) -> str | None:
    """Return the key of a base model's parameter in an adapter's tensors; `None` if it is not saved there."""
    return next((key for key in (f"base_model.model.{name}", f"base_model.{name}", name) if key in state), None)


def trained_head(model: PreTrainedModel | PeftModel, new: Iterable[str]) -> dict[str, Tensor]:
    """Return a classifier's weights outside the backbone, and of new modules inside it, as trained, by base names."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    copies = {f".modules_to_save.{name}." for name in model.active_adapters} if base is not model else set()
    state = {}
    for key, value in base.state_dict().items():
        for copy in copies:
            key = key.replace(copy, ".")
        if not key.startswith(f"{base.base_model_prefix}.") or any(key.startswith(f"{name}.") for name in new):
            state[key.replace(".base_layer.", ".")] = value
    return state


def is_new(module: nn.Module) -> bool:
    """Return whether a module, or the one that PEFT's wrapper holds, was newly initialized."""
    return hasattr(getattr(module, "original_module", module), MARK)


def _is_loaded(parameter: Tensor) -> bool:
    # Transformers' own mark. Quantized weights are always loaded.
    return getattr(parameter, "_is_hf_initialized", False) or not parameter.is_floating_point()
