"""What a recipe's settings must be, before anything is read: one clear error for each way to be wrong."""

import difflib
import math
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balora.data.glue import GLUE
from balora.errors import BALoraError
from balora.evaluation.noise import NOISE_KINDS
from balora.recipe.methods import BASELINE_METHODS, RUN_METHODS, RUN_PRESETS
from balora.recipe.rows import check_rows
from balora.report.results import PRETRAINED
from balora.world import WorldConfig

if TYPE_CHECKING:
    from balora.recipe import Recipe

#: Settings that must be at least 1.
COUNTS = (
    "jobs",
    "start_batches",
    "logging_steps",
    "save_steps",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "shuffle_buffer_size",
    "num_virtual_tokens",
    "per_device_eval_batch_size",
    "bottleneck_size",
    "anchor_samples",
    "max_train_samples",
    "max_eval_samples",
    "max_perplexity_samples",
    "lora_alpha",
    "r",
)
#: Settings that are at least 0.
POSITIVE_OR_ZERO = ("weight_decay", "max_grad_norm", "warmup_steps")
#: A seed is below this, as NumPy's are.
SEEDS = 2**32
#: Bytes of a name that a folder is called by; file systems have room for 255, and what is added to it takes some.
LONGEST_NAME = 200
#: Settings of a whole study, which no task or method of it can have for itself.
OF_THE_STUDY = (
    "name",
    "output_dir",
    "methods",
    "baseline",
    "method_settings",
    "sweep",
    "worlds",
    "tasks",
    "task",
    "seed",
    "seeds",
    "jobs",
)


def check_settings(recipe: "Recipe") -> None:
    """See that the settings of a recipe can be, one by one and together.

    Raises:
        BALoraError: Naming the setting that is wrong.
    """
    own = [name for name, settings in recipe.method_settings.items() if "method" in settings]
    for key, names in (("method", [recipe.method]), ("methods", recipe.methods)):
        for method in names:
            known = [*RUN_METHODS, *RUN_PRESETS, *BASELINE_METHODS, *(own if key == "methods" else ())]
            if method not in known:
                raise BALoraError(f"{key}: unknown method {method!r}; there are {', '.join(known)}")
    for key in ("methods", "seeds"):
        values = getattr(recipe, key)
        if not values or len(set(values)) < len(values):
            raise BALoraError(f"{key}: {values} must name at least one, and none twice")
    if recipe.baseline is not None and recipe.baseline not in recipe.methods:
        raise BALoraError(f"baseline: {recipe.baseline!r} is not among the methods {', '.join(recipe.methods)}")
    for key, names in (("methods", recipe.methods), ("tasks", recipe.tasks)):
        for name in names:
            _check_folder_name(key, name)
    _check_numbers(recipe)
    if not recipe.learning_rate > 0:
        raise BALoraError(f"learning_rate: {recipe.learning_rate} must be positive")
    if recipe.wise_ft is not None:
        if not 0 < recipe.wise_ft <= 1:
            raise BALoraError(f"wise_ft: {recipe.wise_ft} is not a share of the trained weights; use one up to 1")
        if recipe.method in BASELINE_METHODS:
            raise BALoraError(f"wise_ft: method {recipe.method!r} is none of the low-rank ones that can be averaged")
    if recipe.glue_task is not None and recipe.glue_task not in GLUE:
        raise BALoraError(f"glue_task: unknown {recipe.glue_task!r}; there are {', '.join(GLUE)}")
    if recipe.packing and (recipe.is_classification or recipe.is_seq2seq):
        raise BALoraError(
            "packing: rows of a causal language model alone can be joined; use train_sampling_strategy: "
            "group_by_length"
        )
    if recipe.geometry and not recipe.is_classification and not recipe.tasks:
        raise BALoraError("geometry: classifiers alone have a representation of each class; leave it out")
    if recipe.perplexity_file is not None and (recipe.is_classification or recipe.is_seq2seq):
        raise BALoraError("perplexity_file: causal language models alone have a perplexity; leave it out")
    if recipe.benchmarks and recipe.is_seq2seq:
        raise BALoraError("benchmarks: they ask causal language models and classifiers; leave them out")
    if recipe.packing and recipe.max_length is None:
        raise BALoraError("packing: rows are joined up to max_length, which is missing")
    for kind in recipe.noise_kinds:
        if kind not in NOISE_KINDS:
            raise BALoraError(f"noise_kinds: unknown {kind!r}; there are {', '.join(NOISE_KINDS)}")
    if not all(0 < level <= 1 for level in recipe.noise_levels):
        raise BALoraError(f"noise_levels: {recipe.noise_levels} must be above 0 and at most 1")
    check_rows(recipe)
    for name, settings in recipe.tasks.items():
        refuse_unknown(f"tasks: {name}", settings, type(recipe), besides=OF_THE_STUDY)
    for name, settings in recipe.method_settings.items():
        refuse_unknown(f"method_settings: {name}", settings, type(recipe), besides=OF_THE_STUDY)
    refuse_unknown("sweep", recipe.sweep, type(recipe), besides=OF_THE_STUDY)
    refuse_unknown("worlds", recipe.worlds, WorldConfig)
    for setting in ("sweep", "worlds"):
        for key, values in getattr(recipe, setting).items():
            if not values or len({repr(value) for value in values}) < len(values):
                raise BALoraError(f"{setting}: {key}: {values} must have at least one value, and none twice")
    if recipe.worlds and (recipe.world is None or recipe.tasks):
        raise BALoraError("worlds: they are variants of `world`, each a task; give `world: {}`, and no tasks")
    if recipe.world is None and recipe.reading_world is None and not recipe.tasks:
        _require_model_and_data(recipe)


def _check_folder_name(key: str, name: Any) -> None:
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
        raise BALoraError(f"{key}: {name!r} names a folder too, so it must be text without slashes")
    if len(name.encode()) > LONGEST_NAME:
        raise BALoraError(f"{key}: {name[:40]!r}… names a folder too, so it must have at most {LONGEST_NAME} letters")
    if key == "methods" and name == PRETRAINED:
        raise BALoraError(f"methods: {name!r} is the untouched model, which is always measured; take another name")


def _check_numbers(recipe: "Recipe") -> None:
    for key, value in vars(recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BALoraError(f"{key}: {value} is no finite number")
    for key in COUNTS:
        value = getattr(recipe, key)
        if value is not None and value < 1:
            raise BALoraError(f"{key}: {value} must be at least 1")
    for key in POSITIVE_OR_ZERO:
        if getattr(recipe, key) < 0:
            raise BALoraError(f"{key}: {getattr(recipe, key)} must not be negative")
    if not recipe.num_train_epochs > 0:
        raise BALoraError(f"num_train_epochs: {recipe.num_train_epochs} must be positive")
    if not 0 <= recipe.lora_dropout < 1:
        raise BALoraError(f"lora_dropout: {recipe.lora_dropout} is no share to leave out; use one from 0, below 1")
    for key, seeds in (("seed", [recipe.seed]), ("seeds", recipe.seeds), ("subset_seed", [recipe.subset_seed or 0])):
        for seed in seeds:
            if not 0 <= seed < SEEDS:
                raise BALoraError(f"{key}: {seed} is no seed; use a whole number from 0, below {SEEDS}")


def _require_model_and_data(recipe: "Recipe") -> None:
    if recipe.model_name_or_path is None:
        raise BALoraError("model_name_or_path: missing; give a Hub name or a folder (or `world: {}`)")
    if recipe.dataset_name is not None and recipe.train_file is not None:
        raise BALoraError("train_file, dataset_name: give one of the two")
    if recipe.dataset_name is None and recipe.train_file is None and recipe.glue_task is None:
        raise BALoraError("train_file, dataset_name: one of the two is missing (or glue_task)")


def refuse_unknown(where: str, settings: dict[str, Any], schema: type, *, besides: tuple[str, ...] = ()) -> None:
    """Stop at a key that is no field of the schema, or one of those that it may not have here.

    Raises:
        BALoraError: Naming the key, and what it may have been meant to be.
    """
    names = [f.name for f in fields(schema) if f.name not in besides]
    for key in settings:
        if key in besides:
            raise BALoraError(f"{where}: {key!r} is a setting of the whole study; put it at the recipe's top level")
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise BALoraError(f"{where}: unknown key {key!r}{meant}")
