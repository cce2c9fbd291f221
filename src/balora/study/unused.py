"""Settings of a recipe that no run of it uses: an error, so that none is silently ignored."""

from collections.abc import Collection, Sequence
from dataclasses import fields

from balora.baselines import BASELINES
from balora.config import Initialization, Regularizers, find_method
from balora.config.unused import Use, has_anchors
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.adapter import Adapter
from balora.recipe.dataset import AnchorTexts
from balora.recipe.recipe import default_settings
from balora.study.method_config import unused_by_method

_ANCHORS = Use(has_anchors, "anchor_weight above 0")
_PERPLEXITY = Use(lambda recipe: recipe.perplexity_file, "perplexity_file")
_HUB = Use(lambda recipe: recipe.dataset_name or recipe.glue_task, "dataset_name")

#: What keys of a recipe need to have an effect, those of the method apart.
USES: dict[str, Use] = {
    **dict.fromkeys(("dataset_config_name", "train_split", "validation_split"), _HUB),
    "glue_dir": Use(lambda recipe: recipe.glue_task, "glue_task"),
    **dict.fromkeys(
        ("mismatched_file", "mismatched_split"),
        Use(lambda recipe: recipe.validation_share is None, "a validation set, not validation_share"),
    ),
    "text_pair_column": Use(lambda recipe: recipe.has_labels, "label_column"),
    "prompt_template": Use(
        lambda recipe: not (recipe.has_labels or recipe.messages_column or recipe.oasst or recipe.qa_format),
        "prompts and completions",
    ),
    "time_column": Use(lambda recipe: recipe.time_frequency, "time_frequency"),
    "class_ratio": Use(lambda recipe: recipe.has_labels, "label_column"),
    "perturbation_strengths": Use(lambda recipe: recipe.perturbation_kinds, "perturbation_kinds"),
    "mixture_ratio": Use(lambda recipe: recipe.auxiliary, "auxiliary"),
    "shuffle_buffer_size": Use(lambda recipe: recipe.streaming, "streaming: true"),
    "max_target_length": Use(
        lambda recipe: recipe.is_seq2seq or recipe.qa_format, "task_type: SEQ_2_SEQ_LM, or qa_format"
    ),
    "noise_levels": Use(lambda recipe: recipe.noise_kinds, "noise_kinds"),
    **dict.fromkeys(("perplexity_column", "max_perplexity_samples"), _PERPLEXITY),
    **dict.fromkeys(("anchor_samples", "anchor_length", "anchor_file"), _ANCHORS),
    "anchor_every": Use(
        lambda recipe: recipe.max_steps < 1 or recipe.anchor_every <= recipe.max_steps, "at least as many max_steps"
    ),
    "anchor_column": Use(lambda recipe: has_anchors(recipe) and recipe.anchor_file, "anchor_file"),
}


def refuse_unused(recipes: Sequence[Recipe]) -> None:
    """Raise if a setting was set, and no run uses it.

    Args:
        recipes: The recipe of each run, `method` among its settings.

    Raises:
        BALoraError: Naming the setting, and what would use it.
    """
    defaults = default_settings()
    found: dict[str, tuple[Recipe, str]] = {}
    used: set[str] = set()
    for recipe in recipes:
        given = {name for name, default in defaults.items() if getattr(recipe, name) != default}
        unused = _unused(recipe, given)
        used |= given - unused.keys()
        found |= {name: (recipe, needs) for name, needs in unused.items()}
    for name, (recipe, needs) in found.items():
        if name not in used:
            raise BALoraError(
                f"{name}: {getattr(recipe, name)!r} has no effect with method {recipe.method}: it needs {needs}; "
                "leave it out"
            )


def _unused(recipe: Recipe, given: Collection[str]) -> dict[str, str]:
    """Return the given settings that a run does not use, each with what it needs."""
    unused = {name: use.needs for name, use in USES.items() if name in given and not use.holds(recipe)}
    return unused | {name: needs for name, needs in _unused_by_method(recipe).items() if name in given}


def _unused_by_method(recipe: Recipe) -> dict[str, str]:
    """Return the settings of adapter, initialization and regularizers that a method does not use."""
    if recipe.method in BASELINES:
        names = {f.name for part in (Adapter, Initialization, Regularizers, AnchorTexts) for f in fields(part)}
        own = {*BASELINES[recipe.method].settings, "method", "sentence_encoder"}
        return dict.fromkeys(names - own, "another method")
    method = find_method(recipe.method)
    unused = unused_by_method(recipe)
    needs = {
        "start_batches": (method.from_data, "method lora-ga or corda"),
        "loraplus_lr_ratio": (method.loraplus, "method lora+"),
        "quantization_config": (method.four_bit, "a method in 4 bits (qlora …)"),
        "num_virtual_tokens": (False, "method prompt-tuning"),
        "bottleneck_size": (False, "method houlsby or pfeiffer"),
        "sentence_encoder": (method.gated or recipe.qa_format, "method selora, or qa_format"),
    }
    return unused | {name: text for name, (used, text) in needs.items() if not used}
