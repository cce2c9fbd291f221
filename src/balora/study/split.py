"""One split of a recipe's data: read, and brought into the form of the recipe's task."""

from dataclasses import replace

import numpy as np
from datasets import Dataset, IterableDataset

from balora.data import load_table, oasst_conversations, stream_table, to_causal_lm_rows, to_classification_rows
from balora.data.columns import column_values, says_nothing
from balora.data.glue import glue_columns, glue_files, glue_header, glue_on_hub
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import keyword_arguments
from balora.study.questions import read_questions

#: Column that says which rows are held out together, while they are being read.
GROUP = "held_out_with"
#: The time of a conversation.
OASST_TIME = "created_date"


def source_of(recipe: Recipe) -> str:
    """What an error calls the training rows."""
    return recipe.train_file or recipe.dataset_name


def with_glue_data(recipe: Recipe) -> Recipe:
    """The recipe with its GLUE task's files or Hub splits filled in, where it names no data of its own."""
    if recipe.glue_task is None or recipe.train_file or recipe.dataset_name:
        return recipe
    return replace(
        recipe, **(glue_files(recipe.glue_task, recipe.glue_dir) if recipe.glue_dir else glue_on_hub(recipe.glue_task))
    )


def read_split(
    recipe: Recipe, file: str | None, split: str, label_names: list[str] | None, *, train: bool = False
) -> tuple[Dataset, list[str] | None]:
    """A split's rows in the form of the recipe's task, and the names of the classes in classification.

    Args:
        recipe: The recipe, with files or the Hub's set named.
        file: Of the split, or `None` for the Hub's.
        split: Its name there.
        label_names: Of the classes, where they are known.
        train: Whether it is trained on. Then its rows also say, where the recipe asks for it, with which others they
            are held out (`GROUP`) and what their time is (`time_column`).

    Raises:
        BALoraError: Naming the file, row or setting that is wrong.
    """
    if recipe.oasst is not None:
        return read_conversations(recipe, file, split), None
    source, table = read_table(recipe, file, split)
    if recipe.drop_empty_rows:
        table = without_empty(table, recipe, source)
    if recipe.has_labels:
        columns = {
            "text_column": recipe.text_column,
            "text_pair_column": recipe.text_pair_column,
            "label_column": recipe.label_column or "label",
        }
        if recipe.glue_task is not None and recipe.text_column is None:
            columns = glue_columns(recipe.glue_task, table, source=source)
        rows, label_names = to_classification_rows(table, source=source, label_names=label_names, **columns)
    elif recipe.qa_format is not None:
        rows, label_names = read_questions(recipe, table, source), None
    else:
        rows, label_names = to_causal_lm_rows(table, source=source, **causal_columns(recipe)), None
    if train and recipe.validation_group_column is not None:
        rows = rows.add_column(GROUP, column_values(table, recipe.validation_group_column, source=source))
    if train and recipe.time_frequency is not None:
        rows = rows.add_column(recipe.time_column, column_values(table, recipe.time_column, source=source))
    return rows, label_names


def read_conversations(recipe: Recipe, file: str | None, split: str) -> Dataset:
    """OASST1's trees as conversations: `messages`, and the `tree` and `created_date` that they are divided by.

    Raises:
        BALoraError: If a setting of `oasst` or the data is wrong.
    """
    try:
        how = keyword_arguments(oasst_conversations, recipe.oasst, given={"source", "split"})
        rows = oasst_conversations(file or recipe.dataset_name, split=None if file else split, **how)
    except BALoraError as error:
        raise BALoraError(f"oasst: {error}") from error
    return rows.select_columns(["messages", "tree", OASST_TIME])


def read_table(
    recipe: Recipe, file: str | None, split: str, *, streaming: bool = False
) -> tuple[str, Dataset | IterableDataset]:
    """What an error calls a split, and the split as it stands where it came from."""
    load = stream_table if streaming else load_table
    if file is None:
        table = load(recipe.dataset_name, split=split, name=recipe.dataset_config_name)
        return f"{recipe.dataset_name} ({split})", table
    header = recipe.column_names
    if header is None and recipe.glue_task is not None:
        header = glue_header(recipe.glue_task, file)
    return file, load(file, column_names=header)


def causal_columns(recipe: Recipe) -> dict[str, str | None]:
    """The arguments of `balora.data.to_causal_lm_rows` that a recipe has."""
    names = ("prompt_column", "completion_column", "prompt_template", "messages_column", "text_column")
    return {name: getattr(recipe, name) for name in names}


def without_empty(table: Dataset, recipe: Recipe, source: str) -> Dataset:
    """The rows whose texts all say something.

    Raises:
        BALoraError: If none does.
    """
    named = {
        "prompt": recipe.prompt_column,
        "completion": recipe.completion_column,
        "text": recipe.text_column,
        "text_pair": recipe.text_pair_column,
    }
    texts = [column or name for name, column in named.items() if (column or name) in table.column_names]
    columns = [table[name][:] for name in texts]
    kept = [row for row, values in enumerate(zip(*columns, strict=True)) if not any(map(says_nothing, values))]
    if not kept:
        raise BALoraError(f"{source}: no row is left whose {' and '.join(texts)} are not empty")
    return table.select(kept)


def subset(recipe: Recipe, rows: Dataset, limit: int | None) -> Dataset:
    """The first so many rows, or, with a seed, so many drawn at random and left in their order."""
    if limit is None or limit >= len(rows):
        return rows
    if recipe.subset_seed is None:
        return rows.select(range(limit))
    drawn = np.random.default_rng(recipe.subset_seed).permutation(len(rows))[:limit]
    return rows.select(sorted(drawn.tolist()))
