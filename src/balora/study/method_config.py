"""Build the configuration of a recipe's method, and the settings that its base is loaded with."""

from dataclasses import fields
from typing import Any

from peft import LoraConfig
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import BitsAndBytesConfig

from balora.adapters.four_bit import require_bitsandbytes, skip_module_patterns
from balora.config import RESIDUAL, SELORA, BALoraConfig, Initialization, Regularizers, four_bit_settings
from balora.errors import BALoraError
from balora.model.regularizers import unregularized
from balora.recipe import Recipe
from balora.recipe.adapter import Adapter
from balora.recipe.methods import RUN_METHODS

#: Recipe keys that are fields of PEFT's LoraConfig, lora_alpha aside, whose default is r.
SAME_NAMES = tuple({f.name for f in fields(Adapter)} & {f.name for f in fields(LoraConfig)} - {"lora_alpha"})
#: Recipe keys that are balora's own fields of BALoraConfig.
OWN_NAMES = tuple(f.name for part in (Initialization, Regularizers) for f in fields(part))


def adapter_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the fields of PEFT's LoraConfig that are recipe keys."""
    return {name: getattr(recipe, name) for name in SAME_NAMES} | {"lora_alpha": recipe.lora_alpha or recipe.r}


def balora_config(recipe: Recipe, seed: int, sentence_dim: int | None = None) -> BALoraConfig:
    """Build the configuration of one of balora's low-rank methods.

    Args:
        recipe: The settings.
        seed: Of the adapter's start.
        sentence_dim: Length of the sentence vectors that selora reads.

    Raises:
        BALoraError: If a setting is out of range.
    """
    method = RUN_METHODS[recipe.method]
    settings = adapter_settings(recipe) | recipe.adapter_arguments
    settings |= {name: getattr(recipe, name) for name in OWN_NAMES}
    settings |= {"method": method.start, "seed": seed, "quantization_config": None}
    if method.four_bit and method.start in RESIDUAL:  # quantized after the split
        settings["quantization_config"] = _four_bit(recipe)
    if method.start == SELORA:
        settings["sentence_dim"] = sentence_dim
    else:
        del settings["semantic_weight"]
    if not method.regularized:
        settings |= unregularized()
    try:
        return BALoraConfig(**settings)
    except (TypeError, ValueError) as error:  # PEFT's, of two of its settings that exclude each other
        raise error if isinstance(error, BALoraError) else BALoraError(f"adapter_arguments: {error}") from error


def loading_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that the recipe's method needs: 4-bit quantization, or none.

    Raises:
        BALoraError: If bitsandbytes is missing, or a setting is wrong.
    """
    method = RUN_METHODS.get(recipe.method)
    if method is None or not method.four_bit:
        return {}
    require_bitsandbytes()
    settings = _four_bit(recipe)
    return {} if method.start in RESIDUAL else {"quantization_config": BitsAndBytesConfig(**settings)}


def _four_bit(recipe: Recipe) -> dict[str, Any]:
    """Return QLoRA's settings (Dettmers et al. 2023, section 3), overridden by the recipe's."""
    settings = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16" if recipe.bf16 else recipe.dtype,
    }
    if recipe.is_classification:
        whole = skip_module_patterns([*SEQ_CLS_HEAD_NAMES, *(recipe.modules_to_save or [])])
        settings["llm_int8_skip_modules"] = whole
    return four_bit_settings(settings | recipe.quantization_config)
