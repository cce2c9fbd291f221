"""From a workload to the trainer that runs it: TRL's for language models, Transformers' for classification."""

from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig

from balora.data import check_lengths, check_max_length, context_length, tokenize_classification
from balora.errors import BALoraError
from balora.model import BALoraModel
from balora.study.workload import Workload
from balora.training import BALoraTrainer
from balora.training.sft import BALoraSFTTrainer

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
    workload: Workload, model: BALoraModel, seed: int, directory: Path, callbacks: list[TrainerCallback]
) -> Trainer:
    """A trainer ready to train, its rows tokenized and held against the model's context.

    Raises:
        BALoraError: If a row is longer than the model's context, a chat has no template, or a further training
            argument is unknown.
    """
    recipe, tokenizer = workload.recipe, workload.tokenizer
    context = context_length(model.config, tokenizer)
    check_max_length(recipe.max_length, context)
    sources = {"train": recipe.train_file or recipe.dataset_name, "validation": recipe.validation_file or "validation"}
    settings = _training_arguments(workload, seed, directory)
    if recipe.is_classification:
        limits = {"max_length": recipe.max_length, "context": context}
        train = tokenize_classification(workload.train, tokenizer, source=sources["train"], **limits)
        validation = {
            name: tokenize_classification(rows, tokenizer, source=sources.get(name, name), **limits)
            for name, rows in (("validation", workload.validation), (MISMATCHED, workload.mismatched))
            if rows is not None
        }
        return BALoraTrainer(
            model=model,
            args=_checked(TrainingArguments, settings),
            train_dataset=train,
            eval_dataset=validation if MISMATCHED in validation else validation.get("validation"),
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=callbacks,
        )
    if "messages" in workload.train.column_names and tokenizer.chat_template is None:
        raise BALoraError(
            f"{sources['train']}: chat rows need a chat template, and that of {recipe.model_name_or_path} has none; "
            "use an instruction-tuned model's tokenizer, or prompt–completion rows"
        )
    trainer = BALoraSFTTrainer(
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
