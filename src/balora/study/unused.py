"""Settings of a recipe that no run of it uses: an error, so that none is silently ignored."""

from collections.abc import Collection, Sequence
from dataclasses import fields

from balora.baselines import BASELINES
from balora.config import Initialization, Regularizers, find_method
from balora.config.unused import Use, reads_own_texts
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.adapter import Adapter
from balora.recipe.dataset import AnchorTexts
from balora.recipe.methods import ANCHORS
from balora.recipe.recipe import default_settings
from balora.study.method_config import protects, unused_by_method

_ANCHORS = Use(
    lambda recipe: reads_own_texts(recipe) or recipe.knowledge_file == ANCHORS,
    f"anchor_weight above 0, or replay_weight, or knowledge_file: {ANCHORS}",
)
_PERPLEXITY = Use(lambda recipe: recipe.perplexity_file, "perplexity_file")
_HUB = Use(
    lambda recipe: recipe.dataset_name or (recipe.glue_task and not (recipe.glue_dir or recipe.train_file)),
    "dataset_name",
)
_CAUSAL = Use(lambda recipe: not (recipe.has_labels or recipe.is_seq2seq), "a causal language model's rows")
_COLUMNS = Use(lambda recipe: recipe.oasst is None and recipe.qa_format is None, "rows of no oasst or qa_format")
_TEXTS = Use(lambda recipe: not recipe.has_labels and _COLUMNS.holds(recipe), "prompts and completions")
_EVALUATED = Use(
    lambda recipe: (
        recipe.validation_file
        or recipe.validation_share
        or recipe.dataset_name
        or recipe.glue_task
        or recipe.world is not None
        or recipe.reading_world is not None
        or recipe.auxiliary
    ),
    "rows to evaluate on: validation_file or validation_share",
)
#: Settings by which rows are drawn.
DRAWN = ("max_train_samples", "max_eval_samples", "class_ratio", "time_frequency", "auxiliary", "validation_share")
#: Schedules whose rate never rises.
WITHOUT_WARMUP = ("constant", "reduce_lr_on_plateau")

#: What keys of a recipe need to have an effect, those of the method apart.
USES: dict[str, Use] = {
    **dict.fromkeys(("dataset_config_name", "train_split", "validation_split"), _HUB),
    "glue_dir": Use(
        lambda recipe: recipe.glue_task and not (recipe.train_file or recipe.dataset_name),
        "glue_task, and no train_file or dataset_name",
    ),
    "mismatched_file": Use(lambda recipe: not recipe.streaming, "rows that are read whole, not streaming"),
    "mismatched_split": Use(
        lambda recipe: not recipe.streaming and _HUB.holds(recipe), "dataset_name, and rows that are read whole"
    ),
    "column_names": Use(
        lambda recipe: recipe.oasst is None and (recipe.train_file or recipe.glue_dir or recipe.validation_file),
        "train_file",
    ),
    **dict.fromkeys(("prompt_column", "completion_column", "messages_column"), _TEXTS),
    "text_column": _COLUMNS,
    "text_pair_column": Use(
        lambda recipe: recipe.has_labels and (not recipe.glue_task or recipe.text_column),
        "label_column, and text_column beside a glue_task",
    ),
    "label_column": Use(
        lambda recipe: not recipe.glue_task or recipe.text_column,
        "text_column too, since glue_task names its columns",
    ),
    "drop_empty_rows": Use(lambda recipe: recipe.oasst is None, "rows of no oasst"),
    **dict.fromkeys(("assistant_only_loss", "chat_template_path"), _CAUSAL),
    "subset_seed": Use(
        lambda recipe: any(getattr(recipe, name) for name in DRAWN), f"rows to draw: {', '.join(DRAWN)}"
    ),
    **dict.fromkeys(("geometry", "noise_kinds", "perturbation_kinds"), _EVALUATED),
    "max_eval_samples": Use(
        lambda recipe: _EVALUATED.holds(recipe) and (not recipe.validation_share or recipe.auxiliary),
        "a validation_file or validation_split: what validation_share holds out is evaluated whole",
    ),
    "warmup_steps": Use(
        lambda recipe: recipe.lr_scheduler_type not in WITHOUT_WARMUP,
        "a schedule that warms up, such as constant_with_warmup",
    ),
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
    "anchor_column": Use(lambda recipe: _ANCHORS.holds(recipe) and recipe.anchor_file, "anchor_file"),
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
        "start_batches": (method.from_data or protects(recipe), "method lora-ga, corda, lora-null or ewc"),
        "knowledge_file": (method.from_inputs or protects(recipe), "method corda, lora-null or ewc"),
        "loraplus_lr_ratio": (method.loraplus, "method lora+"),
        "quantization_config": (method.four_bit, "a method in 4 bits (qlora …)"),
        "num_virtual_tokens": (False, "method prompt-tuning"),
        "bottleneck_size": (False, "method houlsby or pfeiffer"),
        "sentence_encoder": (method.gated or recipe.qa_format, "method selora, or qa_format"),
    }
    return unused | {name: text for name, (used, text) in needs.items() if not used}
