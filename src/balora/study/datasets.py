"""Read the datasets that a recipe names: of one task, of two tasks mixed, or as a stream."""

from dataclasses import replace

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.data import load_table, mix_tasks, stream_table, to_causal_lm_rows
from balora.data.glue import glue_files, glue_on_hub
from balora.data.streaming import read_whole, stream_causal_lm_rows
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.dataset import AUXILIARY_SETTINGS, MIXED_TASKS
from balora.recipe.recipe import default_settings
from balora.recipe.rows import Rows
from balora.study.task_datasets import (
    Datasets,
    causal_columns,
    limit,
    load_split,
    read_conversations,
    read_labelled_text,
    read_questions,
    read_text,
    without_empty,
)

#: Name of the auxiliary task's evaluation dataset; its metrics end in it.
AUXILIARY = MIXED_TASKS[1]


def read_datasets(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Datasets:
    """Read every dataset that a recipe names.

    Args:
        recipe: The recipe, its paths expanded.
        tokenizer: The model's tokenizer; the contexts of questions are cut to fit by its tokens.

    Raises:
        BALoraError: Naming the file, row or setting that is wrong.
    """
    if recipe.streaming:
        return read_stream(recipe)
    return read_mixture(recipe, tokenizer) if recipe.auxiliary else read_task(recipe, tokenizer)


def read_task(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Datasets:
    """Read the datasets of a recipe without an auxiliary task, by the form of its rows."""
    if recipe.oasst is not None:
        return read_conversations(recipe)
    if recipe.qa_format is not None:
        return read_questions(recipe, tokenizer)
    return read_labelled_text(recipe) if recipe.has_labels else read_text(recipe)


def read_mixture(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Datasets:
    """Read two tasks; their training rows are mixed in the recipe's ratio, and each is evaluated on its own."""
    first = replace(recipe, auxiliary={}, task_names=None, alignment_weight=0.0, max_train_samples=None)
    defaults = default_settings()
    try:
        second = replace(first, **{name: defaults[name] for name in AUXILIARY_SETTINGS} | recipe.auxiliary)
    except BALoraError as error:
        raise BALoraError(f"auxiliary: {error}") from error
    primary, auxiliary = (read_task(with_glue_data(part), tokenizer) for part in (first, second))

    if set(primary.train.column_names) == {"prompt", "completion"}:
        train, validation = _as_completions(auxiliary.train), _as_completions(auxiliary.validation)
        auxiliary = replace(auxiliary, train=train, validation=validation)
    if primary.label_names != auxiliary.label_names:
        raise BALoraError(
            f"auxiliary: its classes are {auxiliary.label_names} and the recipe's own {primary.label_names}; mixed "
            "tasks share one head, so they need the same"
        )

    train = mix_tasks(
        dict(zip(MIXED_TASKS, (primary.train, auxiliary.train), strict=True)),
        dict(zip(MIXED_TASKS, recipe.mixture_ratio, strict=True)),
        seed=recipe.subset_seed or 0,
        total=recipe.max_train_samples,
    )
    tasks = [MIXED_TASKS.index(task) for task in train["task"]]
    train = train.remove_columns("task")
    validation, others = primary.validation, dict(primary.others)
    if auxiliary.validation is not None:
        others[AUXILIARY] = auxiliary.validation
    if recipe.task_names is not None:  # each task has an adapter, so each row names its task
        train = train.add_column("task_ids", tasks)
        if validation is not None:
            validation = validation.add_column("task_ids", [0] * len(validation))
        for name, rows in others.items():
            others[name] = rows.add_column("task_ids", [int(name == AUXILIARY)] * len(rows))
    return Datasets(train, validation, primary.label_names, others, primary.spent | auxiliary.spent)


def read_stream(recipe: Recipe) -> Datasets:
    """Read a language model's training rows as a stream, and its validation rows whole."""
    columns = causal_columns(recipe)
    table, source = load_split(recipe, recipe.train_file, recipe.train_split, stream_table)
    limits = {"max_rows": recipe.max_train_samples, "drop_empty": recipe.drop_empty_rows}
    train = stream_causal_lm_rows(table, source=source, **limits, **columns)

    file, validation = recipe.validation_file, None
    if file or recipe.dataset_name:
        # Loading one split of a Hub dataset downloads its training split too; streaming does not.
        table, source = load_split(recipe, file, recipe.validation_split, load_table if file else stream_table)
        table = table if isinstance(table, Dataset) else read_whole(table)
        table = without_empty(recipe, table, source) if recipe.drop_empty_rows else table
        rows = to_causal_lm_rows(table, source=source, **columns)
        validation = limit(recipe, rows, recipe.max_eval_samples)
    return Datasets(train, validation, None)


def with_glue_data(recipe: Recipe) -> Recipe:
    """Return the recipe with its GLUE task's files or Hub splits filled in, unless it names its own data."""
    if recipe.glue_task is None or recipe.train_file or recipe.dataset_name:
        return recipe
    task, folder = recipe.glue_task, recipe.glue_dir
    filled = glue_files(task, folder) if folder else glue_on_hub(task)
    for own in ("validation", "mismatched"):  # rows that the recipe names itself
        keys = (f"{own}_file", f"{own}_split")
        if recipe.validation_share or any(getattr(recipe, key) != getattr(Rows, key) for key in keys):
            filled = {key: value for key, value in filled.items() if key not in keys}
    return replace(recipe, **filled)


def _as_completions(rows: Dataset | None) -> Dataset | None:
    """Return plain text as completions of empty prompts, all of it to be learned; other rows as they are."""
    if rows is None or rows.column_names != ["text"]:
        return rows
    return Dataset.from_dict({"prompt": [""] * len(rows), "completion": rows["text"][:]})
