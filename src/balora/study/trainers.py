"""From a workload to the trainer that runs it: TRL's for language models, Transformers' for classification."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from balora.data import check_lengths, check_max_length, context_length, tokenize_classification
from balora.errors import BALoraError
from balora.model import BALoraModel
from balora.recipe import Recipe
from balora.study.workload import Workload
from balora.training import BALoraTrainer
from balora.training.sft import BALoraSFTTrainer
from balora.training.trainer import ObjectiveTrainerMixin

MISMATCHED = "mismatched"
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
    "bf16",
    "logging_steps",
    "save_steps",
)


def build_trainer(
    workload: Workload,
    model: PreTrainedModel | PeftModel,
    seed: int,
    directory: Path,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """A trainer ready to train: ours for models of ours, the libraries' own for rivals.

    Its rows are tokenized and held against the model's context.

    Raises:
        BALoraError: If a row is longer than the model's context, a chat has no template, or a further training
            argument is unknown.
    """
    recipe = workload.recipe
    context = context_length(model.config, workload.tokenizer)
    check_max_length(recipe.max_length, context)
    settings = _training_arguments(workload, seed, directory)
    build = _classification_trainer if recipe.is_classification else _language_trainer
    trainer = build(workload, model, settings, context, callbacks)
    if isinstance(trainer, ObjectiveTrainerMixin):
        trainer.drift_batches = 0  # measured on the whole evaluation set afterwards
    return trainer


def _sources(recipe: Recipe) -> dict[str, str]:
    """What an error calls each set."""
    return {
        "train": recipe.train_file or recipe.dataset_name,
        "validation": recipe.validation_file or "validation",
        MISMATCHED: recipe.mismatched_file or MISMATCHED,
    }


def _classification_trainer(
    workload: Workload,
    model: PreTrainedModel | PeftModel,
    settings: dict[str, Any],
    context: int | None,
    callbacks: list[TrainerCallback],
) -> Trainer:
    recipe, tokenizer, sources = workload.recipe, workload.tokenizer, _sources(workload.recipe)
    sets = {"train": workload.train, "validation": workload.validation, MISMATCHED: workload.mismatched}
    sets = {
        name: tokenize_classification(
            rows, tokenizer, source=sources[name], max_length=recipe.max_length, context=context
        )
        for name, rows in sets.items()
        if rows is not None
    }
    train = sets.pop("train")
    trainer = BALoraTrainer if isinstance(model, BALoraModel) else Trainer
    return trainer(
        model=model,
        args=_checked(TrainingArguments, settings),
        train_dataset=train,
        eval_dataset=sets if MISMATCHED in sets else sets.get("validation"),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=callbacks,
    )


def _language_trainer(
    workload: Workload,
    model: PreTrainedModel | PeftModel,
    settings: dict[str, Any],
    context: int | None,
    callbacks: list[TrainerCallback],
) -> Trainer:
    recipe, tokenizer, sources = workload.recipe, workload.tokenizer, _sources(workload.recipe)
    if "messages" in workload.train.column_names and tokenizer.chat_template is None:
        raise BALoraError(
            f"{sources['train']}: chat rows need a chat template, and that of {recipe.model_name_or_path} has none; "
            "use an instruction-tuned model's tokenizer, or prompt–completion rows"
        )
    trainer = (BALoraSFTTrainer if isinstance(model, BALoraModel) else SFTTrainer)(
        model=model,
        args=_checked(SFTConfig, {**settings, "max_length": recipe.max_length, "packing": recipe.packing}),
        processing_class=tokenizer,
        train_dataset=workload.train,
        eval_dataset=workload.validation,
        callbacks=callbacks,
    )
    for name, dataset in (("train", trainer.train_dataset), ("validation", trainer.eval_dataset)):
        if dataset is not None:
            lengths = map(len, dataset["input_ids"])
            check_lengths(lengths, source=sources[name], max_length=recipe.max_length, context=context)
    return trainer


def evaluation_sets(trainer: Trainer) -> dict[str, Any]:
    """The trainer's evaluation sets by the suffix that their metrics get."""
    sets = trainer.eval_dataset
    if not isinstance(sets, dict):
        return {} if sets is None else {"": sets}
    return {"" if name == "validation" else f"_{name}": rows for name, rows in sets.items()}


def _training_arguments(workload: Workload, seed: int, directory: Path) -> dict[str, Any]:
    recipe = workload.recipe
    settings = {name: getattr(recipe, name) for name in SAME_NAMES}
    if recipe.gradient_checkpointing:
        settings["gradient_checkpointing"] = True
    return {
        **settings,
        "output_dir": str(directory),
        "seed": seed,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
        **recipe.training_arguments,
    }


def _checked(schema: type, settings: dict[str, Any]) -> Any:
    try:
        return schema(**settings)
    except (TypeError, ValueError) as error:
        raise BALoraError(f"training_arguments: {error}") from error
