"""Build the configuration of a recipe's method, and the settings that its base is loaded with."""

from dataclasses import fields
from typing import Any

from peft import LoraConfig, TaskType
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import BitsAndBytesConfig

from balora.adapters.four_bit import require_bitsandbytes, skip_module_patterns
from balora.adapters.new_modules import BESIDE_HEAD
from balora.config import BALoraConfig, Initialization, Regularizers, find_method, four_bit_settings
from balora.config.quantization import QLORA
from balora.config.unused import needs_of_method
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.adapter import Adapter

#: Recipe keys that are fields of PEFT's LoraConfig, lora_alpha aside, whose default is r.
SAME_NAMES = tuple({f.name for f in fields(Adapter)} & {f.name for f in fields(LoraConfig)} - {"lora_alpha"})
#: Recipe keys that are balora's own fields of BALoraConfig.
OWN_NAMES = tuple(f.name for part in (Initialization, Regularizers) for f in fields(part))


def adapter_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of PEFT's LoraConfig that are recipe keys."""
    return {name: getattr(recipe, name) for name in SAME_NAMES} | {"lora_alpha": recipe.lora_alpha or recipe.r}


def task_type_of(recipe: Recipe) -> TaskType:
    """Return PEFT's type of a recipe's task."""
    if recipe.is_classification:
        return TaskType.SEQ_CLS
    return TaskType.SEQ_2_SEQ_LM if recipe.is_seq2seq else TaskType.CAUSAL_LM


def balora_config(recipe: Recipe, seed: int, sentence_dim: int | None = None) -> BALoraConfig:
    """Build the configuration of one of balora's low-rank methods, without the settings that it does not use.

    Args:
        recipe: The settings, of which some may be for other methods of the study.
        seed: Seed of the adapter's initialization.
        sentence_dim: Length of the sentence embeddings that selora reads.

    Raises:
        BALoraError: If a setting is out of range.
    """
    settings = _settings(recipe, seed, sentence_dim)
    unused = unused_by_method(recipe)
    return _build({name: value for name, value in settings.items() if name not in unused})


def protects(recipe: Recipe) -> bool:
    """Return whether a recipe's method has a penalty on changing what the texts of knowledge_file depend on."""
    return bool(find_method(recipe.method).regularized and recipe.ewc_weight)


def unused_by_method(recipe: Recipe) -> dict[str, str]:
    """Return the settings of `BALoraConfig` that one of balora's methods does not use, each with what it needs."""
    method = find_method(recipe.method)
    unused = _build(_settings(recipe, 0, 1 if method.gated else None)).unused(task_type_of(recipe))
    return unused | needs_of_method(method, OWN_NAMES)


def _settings(recipe: Recipe, seed: int, sentence_dim: int | None) -> dict[str, Any]:
    """Return the arguments of `BALoraConfig`, with those that the method does not use for the task."""
    method = find_method(recipe.method)
    settings = adapter_settings(recipe) | recipe.adapter_arguments
    useless = needs_of_method(method, OWN_NAMES)
    settings |= {name: getattr(recipe, name) for name in OWN_NAMES if name not in useless}
    settings |= {"method": recipe.method, "seed": seed}
    if method.four_bit and method.residual:  # quantized after the split
        settings["quantization_config"] = _four_bit(recipe)
    return settings | ({"sentence_dim": sentence_dim} if method.gated else {})


def _build(settings: dict[str, Any]) -> BALoraConfig:
    try:
        return BALoraConfig(**settings)
    except (TypeError, ValueError) as error:  # PEFT's, of two of its settings that exclude each other
        raise error if isinstance(error, BALoraError) else BALoraError(f"adapter_arguments: {error}") from error


def loading_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that the recipe's method needs: 4-bit quantization, or none.

    Raises:
        BALoraError: If bitsandbytes is missing, or a setting is wrong.
    """
    method = find_method(recipe.method)
    if method is None or not method.four_bit:
        return {}
    require_bitsandbytes()
    settings = _four_bit(recipe)
    return {} if method.residual else {"quantization_config": BitsAndBytesConfig(**settings)}


def _four_bit(recipe: Recipe) -> dict[str, Any]:
    """Return QLoRA's settings, overridden by the recipe's."""
    settings = QLORA | {"bnb_4bit_compute_dtype": "bfloat16" if recipe.bf16 else recipe.dtype}
    if recipe.is_classification:
        whole = skip_module_patterns([*SEQ_CLS_HEAD_NAMES, *BESIDE_HEAD, *(recipe.modules_to_save or [])])
        settings["llm_int8_skip_modules"] = whole
    return four_bit_settings(settings | recipe.quantization_config)
