"""What a recipe's settings must be, before anything is read: one clear error for each way to be wrong."""

import difflib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balora.data.glue import GLUE
from balora.data.perturbation import KINDS
from balora.errors import BALoraError
from balora.evaluation.noise import NOISE_KINDS
from balora.methods import RIVAL_METHODS, RUN_METHODS

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
    "r",
)
#: Settings of a whole study, which no task or method of it can have for itself.
OF_THE_STUDY = (
    "name",
    "output_dir",
    "methods",
    "baseline",
    "method_settings",
    "sweep",
    "tasks",
    "task",
    "seed",
    "seeds",
    "jobs",
)


#: Names of the two tasks of a mixture.
MIXED_TASKS = ("primary", "auxiliary")
#: What the auxiliary one has for itself: where its rows are, and how to read them.
AUXILIARY_SETTINGS = (
    "glue_task",
    "glue_dir",
    "dataset_name",
    "dataset_config_name",
    "train_split",
    "validation_split",
    "train_file",
    "validation_file",
    "validation_share",
    "validation_group_column",
    "mismatched_split",
    "mismatched_file",
    "column_names",
    "prompt_column",
    "completion_column",
    "prompt_template",
    "messages_column",
    "text_column",
    "text_pair_column",
    "label_column",
    "drop_empty_rows",
    "class_ratio",
    "time_frequency",
    "time_column",
)


def check_settings(recipe: "Recipe") -> None:
    """See that the settings of a recipe can be, one by one and together.

    Raises:
        BALoraError: Naming the setting that is wrong.
    """
    own = [name for name, settings in recipe.method_settings.items() if "method" in settings]
    for key, names in (("method", [recipe.method]), ("methods", recipe.methods)):
        for method in names:
            known = [*RUN_METHODS, *RIVAL_METHODS, *(own if key == "methods" else ())]
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
            if Path(name).name != name:
                raise BALoraError(f"{key}: {name!r} names a folder too, so it must be without slashes")
    for key in COUNTS:
        if getattr(recipe, key) < 1:
            raise BALoraError(f"{key}: {getattr(recipe, key)} must be at least 1")
    if not recipe.learning_rate > 0:
        raise BALoraError(f"learning_rate: {recipe.learning_rate} must be positive")
    if recipe.glue_task is not None and recipe.glue_task not in GLUE:
        raise BALoraError(f"glue_task: unknown {recipe.glue_task!r}; there are {', '.join(GLUE)}")
    if recipe.validation_share is not None and not 0 < recipe.validation_share < 1:
        raise BALoraError(f"validation_share: {recipe.validation_share} is not a share; use one between 0 and 1")
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
    if recipe.validation_group_column is not None and recipe.validation_share is None:
        raise BALoraError("validation_group_column: it says what is held out together; set validation_share")
    _check_questions(recipe)
    _check_mixture(recipe)
    if recipe.streaming and not recipe.tasks:
        _check_streaming(recipe)
    for name, settings in recipe.tasks.items():
        refuse_unknown(f"tasks: {name}", settings, type(recipe), besides=OF_THE_STUDY)
    for name, settings in recipe.method_settings.items():
        refuse_unknown(f"method_settings: {name}", settings, type(recipe), besides=OF_THE_STUDY)
    refuse_unknown("sweep", recipe.sweep, type(recipe), besides=OF_THE_STUDY)
    for key, values in recipe.sweep.items():
        if not values or len({repr(value) for value in values}) < len(values):
            raise BALoraError(f"sweep: {key}: {values} must have at least one value, and none twice")
    if recipe.world is None and recipe.reading_world is None and not recipe.tasks:
        _require_model_and_data(recipe)


def _check_questions(recipe: "Recipe") -> None:
    for kind in recipe.perturbation_kinds:
        if kind not in KINDS:
            raise BALoraError(f"perturbation_kinds: unknown {kind!r}; there are {', '.join(KINDS)}")
    if not all(0 <= strength <= 1 for strength in recipe.perturbation_strengths):
        raise BALoraError(f"perturbation_strengths: {recipe.perturbation_strengths} must be shares, from 0 to 1")
    if recipe.reading_world is not None and (not recipe.is_seq2seq or recipe.qa_format != "hotpotqa"):
        raise BALoraError(
            "reading_world: a T5 reads HotpotQA's questions there; set task_type: SEQ_2_SEQ_LM and qa_format: hotpotqa"
        )
    if recipe.tasks:
        return
    if recipe.qa_format is None and (recipe.perturbation_kinds or recipe.gold_context):
        raise BALoraError("perturbation_kinds, gold_context: they are for questions with contexts; set qa_format")
    if recipe.qa_format is not None and recipe.has_labels:
        raise BALoraError("qa_format: questions have answers and no classes; leave glue_task and label_column out")
    if recipe.qa_format is not None and recipe.streaming:
        raise BALoraError("streaming: the contexts of questions are cut to fit before training; leave it out")
    if recipe.qa_format is not None and recipe.max_length is None:
        raise BALoraError("max_length: missing; a question's context is cut to so many tokens, question included")


def _check_mixture(recipe: "Recipe") -> None:
    for key in recipe.auxiliary:
        if key not in AUXILIARY_SETTINGS:
            raise BALoraError(
                f"auxiliary: {key!r} does not say where a task's rows are or how to read them; it takes "
                f"{', '.join(AUXILIARY_SETTINGS)}"
            )
    if recipe.auxiliary and recipe.qa_format is not None:
        raise BALoraError("auxiliary: questions with contexts are not mixed with other rows; leave qa_format out")
    if len(recipe.mixture_ratio) != len(MIXED_TASKS):
        raise BALoraError(
            f"mixture_ratio: {recipe.mixture_ratio} has {len(recipe.mixture_ratio)} numbers; give two, the primary "
            "task's and the auxiliary's"
        )
    if recipe.task_names is None or recipe.tasks:
        return
    if tuple(recipe.task_names) != MIXED_TASKS or not recipe.auxiliary:
        raise BALoraError(
            f"task_names: {recipe.task_names}; a recipe's rows are of the tasks {', '.join(MIXED_TASKS)}, in this "
            "order, where it has an `auxiliary` task"
        )


def _check_streaming(recipe: "Recipe") -> None:
    if recipe.has_labels or recipe.is_seq2seq:
        raise BALoraError("streaming: rows of a causal language model alone are read as they are needed; leave it out")
    if recipe.auxiliary or recipe.time_frequency is not None:
        raise BALoraError("streaming: rows are mixed, or thinned out in time, when all are at hand; leave it out")
    if recipe.max_steps < 1:
        raise BALoraError("max_steps: missing; streaming knows no length, so say how many steps to train")
    if recipe.train_sampling_strategy == "group_by_length":
        raise BALoraError(
            "train_sampling_strategy: group_by_length needs the length of every row, which streaming does not know; "
            "use random or sequential"
        )
    if recipe.validation_share is not None:
        raise BALoraError(
            "validation_share: streaming cannot hold out a share of what it has not read; name a validation_file or a "
            "validation_split"
        )
    if recipe.subset_seed is not None and recipe.max_train_samples is not None:
        raise BALoraError(
            "subset_seed: streaming takes the first max_train_samples rows and draws none; drop one of the two"
        )


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
