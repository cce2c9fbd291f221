"""What a recipe's settings about its rows must be together: held out, mixed, streamed, questions with contexts."""

from typing import TYPE_CHECKING

from balora.data.perturbation import KINDS
from balora.errors import BALoraError

if TYPE_CHECKING:
    from balora.recipe import Recipe

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
    "oasst",
    "messages_column",
    "text_column",
    "text_pair_column",
    "label_column",
    "drop_empty_rows",
    "class_ratio",
    "time_frequency",
    "time_column",
)


def check_rows(recipe: "Recipe") -> None:
    """As `balora.recipe.checks.check_settings`, of these settings.

    Raises:
        BALoraError: Naming the setting that is wrong.
    """
    if recipe.validation_share is not None and not 0 < recipe.validation_share < 1:
        raise BALoraError(f"validation_share: {recipe.validation_share} is not a share; use one between 0 and 1")
    if recipe.validation_group_column is not None and recipe.validation_share is None:
        raise BALoraError("validation_group_column: it says what is held out together; set validation_share")
    _check_questions(recipe)
    _check_oasst(recipe)
    _check_mixture(recipe)
    if recipe.streaming and not recipe.tasks:
        _check_streaming(recipe)


def _check_questions(recipe: "Recipe") -> None:
    for kind in recipe.perturbation_kinds:
        if kind not in KINDS:
            raise BALoraError(f"perturbation_kinds: unknown {kind!r}; there are {', '.join(KINDS)}")
    if not all(0 <= strength <= 1 for strength in recipe.perturbation_strengths):
        raise BALoraError(f"perturbation_strengths: {recipe.perturbation_strengths} must be shares, from 0 to 1")
    if recipe.reading_world is not None and recipe.world is not None:
        raise BALoraError("world, reading_world: each has a model of its own; give one of the two")
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


def _check_oasst(recipe: "Recipe") -> None:
    if recipe.oasst is None:
        return
    if recipe.has_labels or recipe.is_seq2seq or recipe.streaming or recipe.qa_format is not None:
        raise BALoraError(
            "oasst: conversations are for causal language models, and read whole; leave label_column, qa_format and "
            "streaming out"
        )
    if recipe.validation_group_column is not None:
        raise BALoraError("validation_group_column: conversations are held out by their trees; leave it out")


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
