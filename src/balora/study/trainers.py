"""Build a run's trainer: TRL's for causal language models, Transformers' for classification and T5."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

from balora.config import find_method
from balora.data import (
    check_lengths,
    check_max_length,
    context_length,
    tokenize_classification,
    tokenize_seq2seq,
)
from balora.data.chat_tokens import are_chats, tokenize_chats
from balora.data.qa import QA_FEATURES
from balora.data.special_tokens import tokenize_texts_once_ended
from balora.data.streaming import Passes
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.recipe import Recipe
from balora.recipe.training import Training
from balora.study.model_and_data import ModelAndData
from balora.study.sentences import with_sentences
from balora.study.shared_rows import shared
from balora.training import BALoraTrainer
from balora.training.loraplus import loraplus_optimizer
from balora.training.packing import PackingMixin
from balora.training.reliable import ReliableTrainerMixin, check_first_batch
from balora.training.sft import BALoraSFTTrainer
from balora.training.truncation import TruncationMixin
from balora.utils.distributed import is_distributed

#: Recipe keys that are fields of TrainingArguments, gradient_checkpointing among them, which TRL would turn on.
SAME_NAMES = tuple({f.name for f in fields(Training)} & {f.name for f in fields(TrainingArguments)})


class BaselineTrainer(ReliableTrainerMixin, Trainer):
    """Transformers' trainer with exact resuming and the check for non-finite losses."""


class BaselineSFTTrainer(PackingMixin, ReliableTrainerMixin, TruncationMixin, SFTTrainer):
    """TRL's trainer with exact resuming and the check for non-finite losses."""


def build_trainer(
    prepared: ModelAndData,
    model: PreTrainedModel | PeftModel,
    seed: int,
    directory: Path,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """Build a trainer that is ready to train: balora's for a `BALoraModel`, the libraries' for baselines.

    Rows are tokenized, and their lengths compared with the model's context.

    Args:
        prepared: The run's model, rows and metrics.
        model: The model to train.
        seed: Seed of data order and dropout.
        directory: Folder for checkpoints.
        callbacks: Callbacks of the trainer.

    Raises:
        BALoraError: If a row is longer than the model's context, `max_length` leaves nothing to learn in any row, or a
            further training argument is unknown.
    """
    recipe = prepared.recipe
    context = context_length(model.config, prepared.tokenizer)
    check_max_length(recipe.max_length, context)
    settings = _training_arguments(prepared, seed, directory)
    has_teacher = isinstance(model, BALoraModel)
    if recipe.is_classification or recipe.is_seq2seq:
        sets = _tokenized(prepared, model, context)
        collator = (
            DataCollatorForSeq2Seq(prepared.tokenizer, model=model)
            if recipe.is_seq2seq
            else DataCollatorWithPadding(prepared.tokenizer)
        )
        trainer = (BALoraTrainer if has_teacher else BaselineTrainer)(
            model=model,
            args=_checked(TrainingArguments, settings),
            train_dataset=sets.pop("train"),
            eval_dataset=sets if prepared.others else sets.get("validation"),
            data_collator=collator,
            callbacks=callbacks,
        )
    else:
        model.config.use_cache = False  # as in training: with a cache, packed rows would read one another
        sets = _sets(prepared)
        evaluated = {name: _as_trl(prepared, model, rows, name) for name, (rows, _) in sets.items() if name != "train"}
        trainer = (BALoraSFTTrainer if has_teacher else BaselineSFTTrainer)(
            model=model,
            args=_checked(SFTConfig, {**settings, "max_length": recipe.max_length, "packing": recipe.packing}),
            processing_class=prepared.tokenizer,
            train_dataset=(
                _tokenized_for_trl(prepared, _in_order(prepared.train, recipe, seed), "train")
                if recipe.streaming
                else _as_trl(prepared, model, prepared.train, "train")
            ),
            eval_dataset=evaluated if prepared.others else evaluated.get("validation"),
            callbacks=callbacks,
        )
        if recipe.streaming:
            _, source = sets.pop("train")
            limits = {"max_length": recipe.max_length, "context": context}
            trainer.train_dataset = Passes(trainer.train_dataset, source=source, **limits)
        evaluated = trainer.eval_dataset if prepared.others else {"validation": trainer.eval_dataset}
        tokenized = {"train": trainer.train_dataset, **evaluated}
        for name, (_, source) in sets.items():
            lengths = map(len, tokenized[name]["input_ids"])
            check_lengths(lengths, source=source, max_length=recipe.max_length, context=context)
    method = find_method(recipe.method)
    if method is not None and method.loraplus:
        trainer.optimizer = loraplus_optimizer(trainer.model, trainer.args, recipe.loraplus_lr_ratio)
    trainer.nonfinite = recipe.nonfinite
    if has_teacher:
        trainer.drift_batches = 0  # drift is measured on the whole evaluation set after training
    return trainer


def check_steps(prepared: ModelAndData) -> None:
    """Check before a model is loaded that training has a step; packing only makes rows fewer.

    Raises:
        BALoraError: If `dataloader_drop_last` drops the only batch.
    """
    recipe = prepared.recipe
    if isinstance(prepared.train, Dataset):
        drop_last = bool(recipe.training_arguments.get("dataloader_drop_last"))
        check_first_batch(len(prepared.train), recipe.per_device_train_batch_size, drop_last=drop_last)


def evaluation_batches(trainer: Trainer, tokens: Dataset) -> DataLoader:
    """Return all batches of an evaluation set, in every process."""
    return batches_in_order(trainer, tokens) if is_distributed() else trainer.get_eval_dataloader(tokens)


def batches_in_order(trainer: Trainer, tokens: Dataset) -> DataLoader:
    """Return evaluation batches in the order of the rows, which the trainer's own loader may sort by length."""
    return DataLoader(tokens, batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator)


def _in_order(rows: IterableDataset, recipe: Recipe, seed: int) -> IterableDataset:
    """Shuffle a stream as the recipe asks, before tokenization because text takes less memory."""
    if recipe.train_sampling_strategy == "sequential":
        return rows
    return rows.shuffle(seed=seed, buffer_size=recipe.shuffle_buffer_size)


def _as_trl(prepared: ModelAndData, model: PreTrainedModel | PeftModel, rows: Dataset, name: str) -> Dataset:
    """Return rows in TRL's format, with sentence embeddings if the model reads them."""
    standard = [column for column in rows.column_names if column not in QA_FEATURES]
    read = _tokenized_for_trl(prepared, shared(rows.select_columns(standard)), name)
    return with_sentences(prepared, model, rows, read)


def _tokenized_for_trl(
    prepared: ModelAndData, rows: Dataset | IterableDataset, name: str
) -> Dataset | IterableDataset:
    """Tokenize rows that TRL does not tokenize right; it does the others.

    TRL masks turns of few chat templates, and no message by its weight; and it ends texts that the tokenizer ends.
    """
    completion_only = prepared.recipe.training_arguments.get("completion_only_loss") is not False
    if not are_chats(rows):
        return tokenize_texts_once_ended(rows, prepared.tokenizer, completion_only_loss=completion_only)
    return tokenize_chats(
        rows,
        prepared.tokenizer,
        source=f"{name} rows",
        assistant_only_loss=prepared.recipe.assistant_only_loss is not False,
        completion_only_loss=completion_only,
    )


def _tokenized(prepared: ModelAndData, model: PreTrainedModel | PeftModel, context: int | None) -> dict[str, Dataset]:
    """Tokenize every set, for a classification head or for an encoder and a decoder."""
    recipe, tokenizer = prepared.recipe, prepared.tokenizer
    limits = {"max_length": recipe.max_length, "context": context}
    if recipe.is_seq2seq:
        limits["max_target_length"] = recipe.max_target_length
        tokens = {
            name: tokenize_seq2seq(prepared.as_text(rows), tokenizer, source=source, **limits)
            for name, (rows, source) in _sets(prepared).items()
        }
    else:
        tokens = {
            name: tokenize_classification(rows, tokenizer, source=source, **limits)
            for name, (rows, source) in _sets(prepared).items()
        }
    return {
        name: with_sentences(prepared, model, rows, _with_task_ids(rows, tokens[name]))
        for name, (rows, _) in _sets(prepared).items()
    }


def _with_task_ids(rows: Dataset, tokens: Dataset) -> Dataset:
    return tokens.add_column("task_ids", rows["task_ids"][:]) if "task_ids" in rows.column_names else tokens


def _sets(prepared: ModelAndData) -> dict[str, tuple[Dataset, str]]:
    """Return every dataset by name, with its source for error messages."""
    recipe = prepared.recipe
    sets = {
        "train": (prepared.train, recipe.train_file or recipe.dataset_name),
        "validation": (prepared.validation, _validation_source(recipe)),
        **{name: (rows, name) for name, rows in prepared.others.items()},
    }
    return {name: (rows, source) for name, (rows, source) in sets.items() if rows is not None}


def _validation_source(recipe: Recipe) -> str:
    """Return the name of the validation rows: the file, the split, or the training rows that they are held out of."""
    if recipe.validation_share:
        return f"rows held out of {recipe.train_file or recipe.dataset_name}"
    return recipe.validation_file or f"{recipe.dataset_name} ({recipe.validation_split})"


def row_counts(prepared: ModelAndData) -> dict[str, int]:
    """Return the number of rows of every dataset by name; a stream has none."""
    return {name: len(rows) for name, (rows, _) in _sets(prepared).items() if not isinstance(rows, IterableDataset)}


def described_rows(prepared: ModelAndData) -> str:
    """Return a line on the rows of a task: how many are trained on, and how many are evaluated on."""
    recipe, counts = prepared.recipe, row_counts(prepared)
    trained = f"{counts['train']:,} rows" if "train" in counts else "a stream"
    line = f"{recipe.name}: trains on {trained} of {recipe.train_file or recipe.dataset_name}"
    if measured := evaluated_on(prepared):
        share = f" (validation_share: {recipe.validation_share:g})" if recipe.validation_share else ""
        return f"{line}, evaluates on {measured}{share}"
    return f"{line}, and has no rows to evaluate on"


def evaluated_on(prepared: ModelAndData) -> str:
    """Return the evaluation sets with their number of rows and sources, for the model card."""
    sets = {name: own for name, own in _sets(prepared).items() if name != "train"}
    return ", ".join(f"{len(rows):,} rows of `{name}` ({source})" for name, (rows, source) in sets.items())


def _training_arguments(prepared: ModelAndData, seed: int, directory: Path) -> dict[str, Any]:
    recipe = prepared.recipe
    return {
        **{name: getattr(recipe, name) for name in SAME_NAMES},
        "output_dir": str(directory),
        "seed": seed,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": not torch.accelerator.is_available(),  # without this, Transformers refuses bf16 on a CPU
        # YAML reads `no`, the name of a strategy, as false.
        **{
            key: "no" if value is False and key.endswith("_strategy") else value
            for key, value in recipe.training_arguments.items()
        },
    }


def _checked(schema: type, settings: dict[str, Any]) -> Any:
    try:
        return schema(**settings)
    except (TypeError, ValueError) as error:
        raise BALoraError(f"training_arguments: {error}") from error
