"""From a recipe to the configuration of its method: what the adapter is, and what precision its base is loaded in."""

from typing import Any

from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from transformers import BitsAndBytesConfig

from balora.adapters.four_bit import require_bitsandbytes, skip_module_patterns
from balora.config import RESIDUAL, SELORA, BALoraConfig, four_bit_settings
from balora.recipe import Recipe
from balora.recipe.methods import RUN_METHODS

#: What recipes and `LoraConfig` call alike.
SAME_NAMES = ("r", "lora_dropout", "target_modules", "target_parameters", "modules_to_save")
TERMS = ("consistency", "diversity", "spectral", "bias_path", "anchor")
#: What a method without regularizers has of them.
NO_WEIGHTS = dict.fromkeys((f"{term}_weight" for term in TERMS), 0.0) | {"counterfactual_words": None}


def adapter_settings(recipe: Recipe) -> dict[str, Any]:
    """Those of PEFT's settings that a recipe has."""
    return {name: getattr(recipe, name) for name in SAME_NAMES} | {"lora_alpha": recipe.lora_alpha or recipe.r}


def balora_config(recipe: Recipe, seed: int, sentence_dim: int | None = None) -> BALoraConfig:
    """The configuration of a low-rank method of ours.

    Args:
        recipe: The settings.
        seed: Of the adapter's start.
        sentence_dim: Length of the sentence vectors that selora reads.

    Raises:
        BALoraError: If a setting is out of range.
    """
    method = RUN_METHODS[recipe.method]
    own = [name for name in BALoraConfig().settings() if name in vars(recipe)]
    settings = adapter_settings(recipe) | {name: getattr(recipe, name) for name in own}
    settings |= {"method": method.start, "seed": seed, "quantization_config": None}
    if method.four_bit and method.start in RESIDUAL:  # quantized after the split
        settings["quantization_config"] = _four_bit(recipe)
    if method.start == SELORA:
        settings["sentence_dim"] = sentence_dim
    else:
        del settings["semantic_weight"]
    if not method.regularized:
        settings |= NO_WEIGHTS
    return BALoraConfig(**settings)


def loading_settings(recipe: Recipe) -> dict[str, Any]:
    """What the recipe's method wants of `from_pretrained`: a base in 4 bits, where it is quantized as it is read.

    Raises:
        BALoraError: If it cannot be.
    """
    method = RUN_METHODS.get(recipe.method)
    if method is None or not method.four_bit:
        return {}
    require_bitsandbytes()
    settings = _four_bit(recipe)
    return {} if method.start in RESIDUAL else {"quantization_config": BitsAndBytesConfig(**settings)}


def _four_bit(recipe: Recipe) -> dict[str, Any]:
    """QLoRA's settings (Dettmers et al. 2023, section 3), with the recipe's over them."""
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
