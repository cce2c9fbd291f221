"""The rows that a recipe names: read, brought into their task's form, thinned out, held out; or streamed."""

from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from balora.data import load_table, stream_table, to_causal_lm_rows, to_classification_rows
from balora.data.columns import says_nothing
from balora.data.glue import GLUE, glue_columns, glue_files, glue_header, glue_on_hub
from balora.data.imbalance import subsample_to_ratio
from balora.data.streaming import read_whole, stream_causal_lm_rows
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.study.questions import read_questions, with_prompts


@dataclass(frozen=True)
class Sets:
    """Rows in the form of the recipe's task; see `balora.study.workload.Workload`."""

    train: Dataset | IterableDataset
    validation: Dataset | None
    mismatched: Dataset | None
    label_names: list[str] | None


def read_sets(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Sets:
    """Read every set of rows that a recipe names, its paths being expanded.

    Args:
        recipe: The recipe.
        tokenizer: The model's, by which questions' contexts are cut to fit.

    Raises:
        BALoraError: Naming the file, row or setting that is wrong.
    """
    if recipe.streaming:
        return _streamed(recipe)
    known = list(GLUE[recipe.glue_task].label_names) if recipe.glue_task else None
    train, label_names = _split(recipe, recipe.train_file, recipe.train_split, known)
    if recipe.class_ratio is not None:
        train = subsample_to_ratio(
            train,
            recipe.class_ratio,
            seed=recipe.subset_seed or 0,
            source=source_of(recipe),
            label_names=label_names,
            total=recipe.max_train_samples,
        )
    train = _subset(recipe, train, recipe.max_train_samples)
    validation = mismatched = None
    if recipe.validation_share is not None:
        train, validation = _hold_out(recipe, train)
    elif recipe.validation_file or recipe.dataset_name:
        validation, _ = _split(recipe, recipe.validation_file, recipe.validation_split, label_names)
        validation = _subset(recipe, validation, recipe.max_eval_samples)
    if recipe.validation_share is None and (recipe.mismatched_file or recipe.mismatched_split):
        mismatched, _ = _split(recipe, recipe.mismatched_file, recipe.mismatched_split, label_names)
        mismatched = _subset(recipe, mismatched, recipe.max_eval_samples)
    if recipe.qa_format is not None:
        train = with_prompts(recipe, tokenizer, train, source_of(recipe), gold=recipe.gold_context)
        if validation is not None:
            validation = with_prompts(recipe, tokenizer, validation, recipe.validation_file or source_of(recipe))
    return Sets(train, validation, mismatched, label_names)


def source_of(recipe: Recipe) -> str:
    """What an error calls the training rows."""
    return recipe.train_file or recipe.dataset_name


def _streamed(recipe: Recipe) -> Sets:
    """Training rows as a stream, and a whole set to evaluate on."""
    source, table = _table(recipe, recipe.train_file, recipe.train_split, streaming=True)
    settings = {"max_rows": recipe.max_train_samples, "drop_empty": recipe.drop_empty_rows}
    train = stream_causal_lm_rows(table, source=source, **settings, **_causal_columns(recipe))
    validation, file = None, recipe.validation_file
    if file or recipe.dataset_name:
        # Of a Hub set that is not streamed, the training rows would be downloaded too.
        source, table = _table(recipe, file, recipe.validation_split, streaming=file is None)
        rows = table if isinstance(table, Dataset) else read_whole(table)
        rows = _without_empty(rows, recipe, source) if recipe.drop_empty_rows else rows
        validation = to_causal_lm_rows(rows, source=source, **_causal_columns(recipe))
        validation = _subset(recipe, validation, recipe.max_eval_samples)
    return Sets(train, validation, mismatched=None, label_names=None)


def with_glue_data(recipe: Recipe) -> Recipe:
    """The recipe with its GLUE task's files or Hub splits filled in, where it names no data of its own."""
    if recipe.glue_task is None or recipe.train_file or recipe.dataset_name:
        return recipe
    return replace(
        recipe, **(glue_files(recipe.glue_task, recipe.glue_dir) if recipe.glue_dir else glue_on_hub(recipe.glue_task))
    )


def _split(
    recipe: Recipe, file: str | None, split: str, label_names: list[str] | None
) -> tuple[Dataset, list[str] | None]:
    """A split's rows in the form of the recipe's task, and the names of the classes in classification."""
    source, table = _table(recipe, file, split)
    if recipe.drop_empty_rows:
        table = _without_empty(table, recipe, source)
    if recipe.has_labels:
        columns = {
            "text_column": recipe.text_column,
            "text_pair_column": recipe.text_pair_column,
            "label_column": recipe.label_column or "label",
        }
        if recipe.glue_task is not None and recipe.text_column is None:
            columns = glue_columns(recipe.glue_task, table, source=source)
        return to_classification_rows(table, source=source, label_names=label_names, **columns)
    if recipe.qa_format is not None:
        return read_questions(recipe, table, source), None
    return to_causal_lm_rows(table, source=source, **_causal_columns(recipe)), None


def _table(
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


def _causal_columns(recipe: Recipe) -> dict[str, str | None]:
    names = ("prompt_column", "completion_column", "prompt_template", "messages_column", "text_column")
    return {name: getattr(recipe, name) for name in names}


def _without_empty(table: Dataset, recipe: Recipe, source: str) -> Dataset:
    """The rows whose texts all say something."""
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


def _subset(recipe: Recipe, rows: Dataset, limit: int | None) -> Dataset:
    """The first so many rows, or, with a seed, so many drawn at random and left in their order."""
    if limit is None or limit >= len(rows):
        return rows
    if recipe.subset_seed is None:
        return rows.select(range(limit))
    drawn = np.random.default_rng(recipe.subset_seed).permutation(len(rows))[:limit]
    return rows.select(sorted(drawn.tolist()))


def _hold_out(recipe: Recipe, rows: Dataset) -> tuple[Dataset, Dataset]:
    """The rows to train on, and those to evaluate on in place of an evaluation set."""
    parts = rows.train_test_split(test_size=recipe.validation_share, seed=recipe.subset_seed or 0)
    return parts["train"], parts["test"]
