"""Build the trainer of prepared model and data: TRL's for language models, Transformers' for classification."""

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

from balora.data import (
    check_lengths,
    check_max_length,
    context_length,
    tokenize_classification,
    tokenize_seq2seq,
)
from balora.data.qa import QA_FEATURES
from balora.data.streaming import Passes
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.recipe import Recipe
from balora.study.model_and_data import ModelAndData
from balora.study.sentences import with_sentences
from balora.training import BALoraTrainer
from balora.training.loraplus import loraplus_optimizer
from balora.training.reliable import ReliableTrainerMixin
from balora.training.sft import BALoraSFTTrainer
from balora.utils.distributed import is_distributed

#: Fields of TrainingArguments that a recipe has under the same name.
SAME_NAMES = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "train_sampling_strategy",
    "per_device_eval_batch_size",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "gradient_checkpointing",  # which TRL would turn on
    "bf16",
    "logging_steps",
    "save_steps",
)


class RivalTrainer(ReliableTrainerMixin, Trainer):
    """Transformers' own, as sure to go on and as wary of what is not finite as ours."""


class RivalSFTTrainer(ReliableTrainerMixin, SFTTrainer):
    """TRL's own, likewise."""


def build_trainer(
    prepared: ModelAndData,
    model: PreTrainedModel | PeftModel,
    seed: int,
    directory: Path,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A trainer ready to train: ours for models of ours, the libraries' for rivals.

    Its rows are tokenized and held against the model's context.

    Raises:
        BALoraError: If a row is longer than the model's context, a chat has no template, or a further training
            argument is unknown.
    """
    recipe = prepared.recipe
    context = context_length(model.config, prepared.tokenizer)
    check_max_length(recipe.max_length, context)
    settings = _training_arguments(prepared, seed, directory)
    own = isinstance(model, BALoraModel)
    if recipe.is_classification or recipe.is_seq2seq:
        sets = _tokenized(prepared, model, context)
        collator = (
            DataCollatorForSeq2Seq(prepared.tokenizer, model=model)
            if recipe.is_seq2seq
            else DataCollatorWithPadding(prepared.tokenizer)
        )
        trainer = (BALoraTrainer if own else RivalTrainer)(
            model=model,
            args=_checked(TrainingArguments, settings),
            train_dataset=sets.pop("train"),
            eval_dataset=sets if prepared.others else sets.get("validation"),
            data_collator=collator,
            callbacks=callbacks,
        )
    else:
        _check_chat_template(prepared)
        sets = _sets(prepared)
        evaluated = {name: _as_trl(prepared, model, rows) for name, (rows, _) in sets.items() if name != "train"}
        trainer = (BALoraSFTTrainer if own else RivalSFTTrainer)(
            model=model,
            args=_checked(SFTConfig, {**settings, "max_length": recipe.max_length, "packing": recipe.packing}),
            processing_class=prepared.tokenizer,
            train_dataset=_in_order(prepared.train, recipe, seed) if recipe.streaming else _as_trl(prepared, model),
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
    if recipe.method == "lora+":
        trainer.optimizer = loraplus_optimizer(trainer.model, trainer.args, recipe.loraplus_lr_ratio)
    trainer.nonfinite = recipe.nonfinite
    if own:
        trainer.drift_batches = 0  # measured on the whole evaluation set afterwards
    return trainer


def evaluation_batches(trainer: Trainer, tokens: Dataset) -> DataLoader:
    """All evaluation batches, in this process, of however many."""
    return batches_in_order(trainer, tokens) if is_distributed() else trainer.get_eval_dataloader(tokens)


def batches_in_order(trainer: Trainer, tokens: Dataset) -> DataLoader:
    """Evaluation batches in the rows' order, for answers that are held against rows: the trainer's loader may sort."""
    return DataLoader(tokens, batch_size=trainer.args.eval_batch_size, collate_fn=trainer.data_collator)


def _in_order(rows: IterableDataset, recipe: Recipe, seed: int) -> IterableDataset:
    """A stream in the order that the recipe's sampling has, before it is tokenized: text takes less memory."""
    if recipe.train_sampling_strategy == "sequential":
        return rows
    return rows.shuffle(seed=seed, buffer_size=recipe.shuffle_buffer_size)


def _as_trl(prepared: ModelAndData, model: PreTrainedModel | PeftModel, rows: Dataset | None = None) -> Dataset:
    """Rows, training's by default, as TRL reads them, with sentence vectors where the model wants them."""
    rows = prepared.train if rows is None else rows
    standard = [name for name in rows.column_names if name not in QA_FEATURES]
    return with_sentences(prepared, model, rows, rows.select_columns(standard))


def _tokenized(prepared: ModelAndData, model: PreTrainedModel | PeftModel, context: int | None) -> dict[str, Dataset]:
    """Every set as the model's inputs: for a classification head, or for an encoder and a decoder."""
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
    """Each set of rows that there is, and what an error calls it."""
    recipe = prepared.recipe
    sets = {
        "train": (prepared.train, recipe.train_file or recipe.dataset_name),
        "validation": (prepared.validation, recipe.validation_file or "validation"),
        **{name: (rows, name) for name, rows in prepared.others.items()},
    }
    return {name: (rows, source) for name, (rows, source) in sets.items() if rows is not None}


def _check_chat_template(prepared: ModelAndData) -> None:
    train = prepared.train
    columns = next(iter(train)) if isinstance(train, IterableDataset) else train.column_names
    if "messages" in columns and prepared.tokenizer.chat_template is None:
        raise BALoraError(
            f"{_sets(prepared)['train'][1]}: chat rows need a chat template, and that of "
            f"{prepared.recipe.model_name_or_path} has none; use an instruction-tuned model's tokenizer, or "
            "prompt–completion rows"
        )


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
        "use_cpu": not torch.accelerator.is_available(),  # Transformers takes bf16 there only if it is told so
        **recipe.training_arguments,
    }


def _checked(schema: type, settings: dict[str, Any]) -> Any:
    try:
        return schema(**settings)
    except (TypeError, ValueError) as error:
        raise BALoraError(f"training_arguments: {error}") from error
