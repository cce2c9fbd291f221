"""Read the datasets of one task, with one function per form of rows.

Each reads top to bottom: read the table, convert it to the form's columns, hold rows out for validation, thin the
training rows, write the prompts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from sklearn.model_selection import GroupShuffleSplit
from transformers import PreTrainedTokenizerBase

from balora.data import (
    load_table,
    oasst_conversations,
    split_oasst,
    thin_by_time,
    to_causal_lm_rows,
    to_classification_rows,
)
from balora.data.causal_lm import ALPACA
from balora.data.columns import column_values, is_blank, row_error, shortened
from balora.data.glue import GLUE, glue_columns, glue_header
from balora.data.subsampling import subsample_to_ratio
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import keyword_arguments
from balora.study.questions import to_questions, with_prompts

#: Names of evaluation datasets; metrics of the second end in its name.
VALIDATION, MISMATCHED = "validation", "mismatched"
#: Columns by which rows are held out and thinned, dropped before rows leave this file: the group of a row, the tree
#: and the time of a conversation, and the recipe's `time_column`.
GROUP, TREE, CREATED = "held_out_with", "tree", "created_date"


@dataclass(frozen=True)
class Datasets:
    """The datasets of a recipe, in the columns of its task.

    Attributes:
        train: Training rows; a stream if the recipe has `streaming`.
        validation: Evaluation rows, or `None`.
        label_names: Class names by id; empty for regression, `None` without labels.
        others: Further evaluation datasets by name: `mismatched`, `auxiliary`.
        spent: Texts of the training split that were not held out, including rows that thinning left out. They
            resemble the training rows, so a classifier is not evaluated on them.
    """

    train: Dataset | IterableDataset
    validation: Dataset | None
    label_names: list[str] | None
    others: dict[str, Dataset] = field(default_factory=dict)
    spent: frozenset[str] = frozenset()


def read_labelled_text(recipe: Recipe) -> Datasets:
    """Read text with classes or numbers: `text`, `text_pair` if there is a second text, and `label`."""

    def convert(table: Dataset, source: str, label_names: list[str] | None) -> tuple[Dataset, list[str]]:
        columns = {
            "text_column": recipe.text_column,
            "text_pair_column": recipe.text_pair_column,
            "label_column": recipe.label_column or "label",
        }
        if recipe.glue_task is not None and recipe.text_column is None:
            columns = glue_columns(recipe.glue_task, table, source=source)
        return to_classification_rows(table, source=source, label_names=label_names, **columns)

    label_names = None if recipe.label_names is None else list(map(str, recipe.label_names))
    if recipe.glue_task:
        label_names = list(GLUE[recipe.glue_task].label_names)
    table, source = read_table(recipe, recipe.train_file, recipe.train_split)
    train, label_names = convert(table, source, label_names)
    texts = _texts(train)

    train, evaluation = hold_out(recipe, with_group_and_time(recipe, train, table, source))
    for held_out in evaluation.values():
        texts -= _texts(held_out) - _texts(train)
    for name, split in evaluation_splits(recipe).items():
        rows, _ = convert(*read_table(recipe, *split), label_names)
        evaluation[name] = limit(recipe, rows, recipe.max_eval_samples)

    train = thin(recipe, train, label_names)
    spent = frozenset(texts) if recipe.is_classification else frozenset()
    return _datasets(recipe, train, evaluation, label_names, spent)


def read_text(recipe: Recipe) -> Datasets:
    """Read text for a language model: `prompt` and `completion`, `messages`, or `text`."""
    columns = causal_columns(recipe)
    table, source = read_table(recipe, recipe.train_file, recipe.train_split)
    train = to_causal_lm_rows(table, source=source, **columns)

    train, evaluation = hold_out(recipe, with_group_and_time(recipe, train, table, source))
    for name, split in evaluation_splits(recipe).items():
        table, source = read_table(recipe, *split)
        rows = to_causal_lm_rows(table, source=source, **columns)
        evaluation[name] = limit(recipe, rows, recipe.max_eval_samples)

    train = thin(recipe, train)
    return _datasets(recipe, train, evaluation)


def read_questions(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Datasets:
    """Read questions with contexts: `balora.data.qa.QA_FEATURES`, and `prompt` and `completion` made from them."""
    table, source = read_table(recipe, recipe.train_file, recipe.train_split)
    train = to_questions(recipe, table, source)

    train, evaluation = hold_out(recipe, with_group_and_time(recipe, train, table, source))
    for name, split in evaluation_splits(recipe).items():
        rows = to_questions(recipe, *read_table(recipe, *split))
        evaluation[name] = limit(recipe, rows, recipe.max_eval_samples)

    train = thin(recipe, train)
    found = _datasets(recipe, train, evaluation)

    train, validation, source = found.train, found.validation, train_source(recipe)
    train = with_prompts(recipe, tokenizer, train, source, gold=recipe.gold_context)
    if validation is not None:
        validation = with_prompts(recipe, tokenizer, validation, recipe.validation_file or source)
    return replace(found, train=train, validation=validation)


def read_conversations(recipe: Recipe) -> Datasets:
    """Read OASST1's trees as conversations, `messages`; whole trees are held out."""

    def read(file: str | None, split: str) -> Dataset:
        try:
            settings = keyword_arguments(oasst_conversations, recipe.oasst, given={"source", "split"})
            rows = oasst_conversations(file or recipe.dataset_name, split=None if file else split, **settings)
        except BALoraError as error:
            raise BALoraError(f"oasst: {error}") from error
        return rows.select_columns(["messages", TREE, CREATED])

    train, evaluation = hold_out(recipe, read(recipe.train_file, recipe.train_split))
    for name, split in evaluation_splits(recipe).items():
        evaluation[name] = limit(recipe, read(*split), recipe.max_eval_samples)

    train = thin(recipe, train)
    return _datasets(recipe, train, evaluation)


def read_table(recipe: Recipe, file: str | None, split: str) -> tuple[Dataset, str]:
    """Return a split of the data as a table, without empty rows if the recipe drops them, and its name for errors."""
    table, source = load_split(recipe, file, split, load_table)
    return without_empty(recipe, table, source) if recipe.drop_empty_rows else table, source


def load_split(recipe: Recipe, file: str | None, split: str, load: Callable) -> tuple[Dataset | IterableDataset, str]:
    """Load a file, or a split of the Hub dataset if `file` is `None`; return it and its name for errors."""
    if file is None:
        table = load(recipe.dataset_name, split=split, name=recipe.dataset_config_name)
        return table, f"{recipe.dataset_name} ({split})"
    header = recipe.column_names
    if header is None and recipe.glue_task is not None:
        header = glue_header(recipe.glue_task, file)
    return load(file, column_names=header), file


def without_empty(recipe: Recipe, table: Dataset, source: str) -> Dataset:
    """Drop the rows of which a text is missing or blank.

    Raises:
        BALoraError: If no row is left.
    """
    columns = {
        "prompt": recipe.prompt_column,
        "completion": recipe.completion_column,
        "text": recipe.text_column,
        "text_pair": recipe.text_pair_column,
    }
    if not any(columns.values()) and not {"prompt", "text"} & {*table.column_names}:
        columns |= ALPACA
    names = [column or name for name, column in columns.items() if (column or name) in table.column_names]
    texts = [table[name][:] for name in names]
    full = [row for row, values in enumerate(zip(*texts, strict=True)) if not any(map(is_blank, values))]
    if not full:
        raise BALoraError(f"{source}: no row is left whose {' and '.join(names)} are not empty")
    return table.select(full)


def causal_columns(recipe: Recipe) -> dict[str, str | None]:
    """Return the recipe's arguments of `balora.data.to_causal_lm_rows`."""
    names = ("prompt_column", "completion_column", "prompt_template", "messages_column", "text_column")
    return {name: getattr(recipe, name) for name in names}


def with_group_and_time(recipe: Recipe, rows: Dataset, table: Dataset, source: str) -> Dataset:
    """Add the columns of the table by which rows are held out and thinned, if the recipe names any."""
    if recipe.validation_group_column is not None:
        groups = column_values(table, recipe.validation_group_column, source=source)
        _check_groups(groups, recipe.validation_group_column, source)
        rows = rows.add_column(GROUP, groups)
    if recipe.time_frequency is not None:
        rows = rows.add_column(recipe.time_column, column_values(table, recipe.time_column, source=source))
    return rows


def hold_out(recipe: Recipe, rows: Dataset) -> tuple[Dataset, dict[str, Dataset]]:
    """Return the training rows, and the validation rows by their name if the recipe holds any out."""
    if recipe.validation_group_column is None and recipe.class_ratio is None:
        rows = limit(recipe, rows, recipe.max_train_samples)  # `thin` limits the others, once groups are held out
    share, seed, source = recipe.validation_share, recipe.subset_seed or 0, train_source(recipe)
    if not share:
        return rows, {}
    if recipe.oasst is not None:
        train, held_out = split_oasst(rows, validation_share=share, seed=seed, source=source)
    elif recipe.validation_group_column is None:
        _check_share(share, len(rows), "rows", source)
        parts = rows.train_test_split(test_size=share, seed=seed)
        train, held_out = parts["train"], parts["test"]
    else:
        groups = rows[GROUP][:]
        if len(set(groups)) < 2:
            raise BALoraError(
                f"validation_group_column: {source} has one value in {recipe.validation_group_column!r}; at least "
                "two are needed to hold one out"
            )
        _check_share(share, len(set(groups)), f"values of {recipe.validation_group_column!r}", source)
        splitter = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
        train, held_out = map(rows.select, next(splitter.split(groups, groups=groups)))
    return train, {VALIDATION: held_out}


def _check_share(share: float, count: int, units: str, source: str) -> None:
    """Check that rows are left to train on; the share is rounded up, so that some are held out.

    Raises:
        BALoraError: If all of them would be held out.
    """
    if count < 2:
        raise BALoraError(
            f"validation_share: {source} has {count} of the {units} to split; at least two are needed to hold one "
            "out; give more or a validation_file, or set validation_share: 0 to train on all"
        )
    if math.ceil(share * count) >= count:
        raise BALoraError(
            f"validation_share: {share} of the {count} {units} of {source} leaves none to train on; use at most "
            f"{math.floor(1000 * (count - 1) / count) / 1000:g}, or give more"
        )


def _check_groups(groups: list[Any], column: str, source: str) -> None:
    """Check that the values by which rows are held out can be compared: all text or all numbers.

    Raises:
        BALoraError: Naming the first row with another value.
    """
    kinds = str if isinstance(groups[0], str) else (int, float)
    for row, value in enumerate(groups, start=1):
        if value is None:
            raise row_error(source, row, column, "is missing")
        if not isinstance(value, kinds):
            raise row_error(source, row, column, f"expected text or a number as in row 1, found {shortened(value)}")


def evaluation_splits(recipe: Recipe) -> dict[str, tuple[str | None, str]]:
    """Return the file and the split of each evaluation dataset to read, none if validation rows are held out."""
    splits = {}
    if recipe.validation_share:
        return splits
    if recipe.validation_file or recipe.dataset_name:
        splits[VALIDATION] = recipe.validation_file, recipe.validation_split
    if recipe.mismatched_file or recipe.mismatched_split:
        splits[MISMATCHED] = recipe.mismatched_file, recipe.mismatched_split
    return splits


def thin(recipe: Recipe, train: Dataset, label_names: list[str] | None = None) -> Dataset:
    """Leave training rows out: by time, then by class ratio or `max_train_samples`."""
    seed, source = recipe.subset_seed or 0, train_source(recipe)
    if recipe.time_frequency is not None:
        train = thin_by_time(train, recipe.time_frequency, seed=seed, source=source, column=recipe.time_column)
    if recipe.class_ratio is None:
        return limit(recipe, train, recipe.max_train_samples)
    total = recipe.max_train_samples
    return subsample_to_ratio(
        train, recipe.class_ratio, seed=seed, source=source, label_names=label_names, total=total
    )


def limit(recipe: Recipe, rows: Dataset, count: int | None) -> Dataset:
    """Keep the first `count` rows, or, with a `subset_seed`, as many drawn at random and left in their order."""
    if count is None or count >= len(rows):
        return rows
    if recipe.subset_seed is None:
        return rows.select(range(count))
    drawn = np.random.default_rng(recipe.subset_seed).permutation(len(rows))[:count]
    return rows.select(sorted(drawn.tolist()))


def train_source(recipe: Recipe) -> str:
    """Return the name of the training rows in errors."""
    return recipe.train_file or recipe.dataset_name


def _datasets(
    recipe: Recipe,
    train: Dataset,
    evaluation: dict[str, Dataset],
    label_names: list[str] | None = None,
    spent: frozenset[str] = frozenset(),
) -> Datasets:
    """Return the datasets without the columns by which rows were held out and thinned."""
    dropped = {GROUP, TREE, CREATED, *([recipe.time_column] if recipe.time_frequency else [])}

    def without(rows: Dataset) -> Dataset:
        return rows.remove_columns([name for name in rows.column_names if name in dropped])

    evaluation = {name: without(rows) for name, rows in evaluation.items()}
    return Datasets(without(train), evaluation.pop(VALIDATION, None), label_names, evaluation, spent)


def _texts(rows: Dataset) -> set[str]:
    return {text.strip() for text in rows["text"]}
