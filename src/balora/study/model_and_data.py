"""The model and data of a recipe, read and validated, and the loading of its model."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from balora.data import context_length, to_text_to_text_rows
from balora.data.chat_tokens import are_chats, turn_end
from balora.data.glue import GLUE
from balora.data.sentences import SentenceEncoder
from balora.data.vocabulary import guard_embeddings
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import Measure
from balora.evaluation.perplexity import perplexity
from balora.recipe import Recipe
from balora.study.base_head import needs_new_head, renew_head
from balora.utils.distributed import is_sharded_launch
from balora.utils.loading import LOAD_ERRORS, drop_unsavable_generation_settings, first_line, load, rename
from balora.utils.sampling import end_token_ids
from balora.world import World, measure_world

MODEL = "model_name_or_path"


@dataclass(frozen=True)
class ModelAndData:
    """The model and data of a recipe, read and validated, for every method and seed.

    Attributes:
        recipe: The recipe, with paths expanded and the files of its world filled in.
        base_name: The model's name for saved adapters: of a `package:` model as the recipe has it, since the path
            that it stands for is this machine's.
        tokenizer: The model's tokenizer.
        train: Training rows: prompt and completion, messages, text, or text (pair) and label, which `as_text` converts
            for a sequence-to-sequence model. A stream if the recipe has `streaming`.
        validation: Evaluation rows of the same form, or `None`.
        others: Further evaluation datasets by name: `mismatched`, `auxiliary`.
        texts: Texts on which perplexity is measured, to see what the model forgets.
        anchors: The user's texts for the self-anchor term, used instead of sampled ones.
        label_names: Class names by id if rows have labels; empty for regression, `None` without labels.
        world: The controlled world, if the recipe has one.
        benchmarks: Benchmarks by name.
        encoder: The sentence encoder, if the recipe names one.
        single: The one-step questions of a reading world, which its model could answer before fine-tuning.
        knowledge: The user's texts of what the model should keep.
    """

    recipe: Recipe
    base_name: str
    tokenizer: PreTrainedTokenizerBase
    train: Dataset | IterableDataset
    validation: Dataset | None
    others: dict[str, Dataset]
    texts: list[str]
    anchors: list[str]
    label_names: list[str] | None
    world: World | None
    benchmarks: dict[str, Measure]
    encoder: SentenceEncoder | None
    single: Dataset | None
    knowledge: list[str]

    def load_model(
        self, *, on_device: bool | None = None, folder: str | None = None, **settings: Any
    ) -> PreTrainedModel:
        """Load the pretrained model onto the accelerator, if there is one.

        A classification head is initialized from the global generator.

        Args:
            on_device: Whether to move it to the accelerator; by default, unless it will be sharded, since it may be
                larger than one device.
            folder: A model tuned in full, to load in place of the recipe's.
            settings: Further arguments of `from_pretrained`.
        """
        settings["dtype"] = getattr(torch, self.recipe.dtype)
        if self.recipe.attn_implementation is not None:
            settings["attn_implementation"] = self.recipe.attn_implementation
        settings["use_safetensors"] = self.recipe.use_safetensors
        settings["output_loading_info"] = True
        name, setting = (self.recipe.model_name_or_path, MODEL) if folder is None else (folder, "adapter")
        unfit = None
        if self.recipe.is_classification and folder is None:
            unfit = needs_new_head(load(AutoConfig, name, setting), self.label_names or [])
            settings["ignore_mismatched_sizes"] = unfit is not None
        model, loading = load(self._auto(), name, setting, **self._head(), **settings)
        if folder is None:
            rename(model, self.base_name)
        drop_unsavable_generation_settings(model)
        guard_embeddings(model, self.tokenizer, source=f"{setting}: {name}")
        if unfit is not None:
            warnings.warn(f"balora: the head of {name} has {unfit}, so a new head is trained")
            renew_head(model)
        if self.recipe.is_classification:
            model.config.pad_token_id = self.tokenizer.pad_token_id
        elif loading["missing_keys"]:
            raise BALoraError(
                f"{setting}: {name} has no {min(loading['missing_keys'])}, so it is not a "
                "complete language model; name a model that was saved with its language-modeling head"
            )
        elif not self.recipe.is_seq2seq and are_chats(self.train):
            _end_with_turn(model, self.tokenizer)
        if is_sharded_launch() if on_device is None else not on_device:
            return model
        device = PartialState(cpu=self.recipe.training_arguments.get("use_cpu", False)).device
        return model.to(device)  # adapters initialized by a decomposition are computed on the device

    def empty_model(self) -> PreTrainedModel:
        """Build the model without weights, on the meta device, to validate settings against it."""
        config = load(AutoConfig, self.recipe.model_name_or_path, MODEL, **self._head())
        try:
            with torch.device("meta"):
                return self._auto().from_config(config)
        except (*LOAD_ERRORS, AssertionError) as error:
            said = f"config.json does not describe a model: {first_line(error)}"
            raise BALoraError(f"{MODEL}: {self.recipe.model_name_or_path!r}: {said}") from error

    def _auto(self) -> Any:
        if self.recipe.is_classification:
            return AutoModelForSequenceClassification
        return AutoModelForSeq2SeqLM if self.recipe.is_seq2seq else AutoModelForCausalLM

    def _head(self) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` for a classification head."""
        if not self.recipe.is_classification:
            return {}
        labels = self.label_names or ["score"]
        return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}

    def minority(self) -> int | None:
        """Return the class with the fewest training rows, the larger id on a tie; `None` without classes."""
        if not self.label_names:
            return None
        counts = np.bincount(self.train["label"], minlength=len(self.label_names))
        return len(counts) - 1 - int(counts[::-1].argmin())

    def as_text(self, rows: Dataset) -> Dataset:
        """Convert rows with labels to prompts and completions as T5 writes them, for a sequence-to-sequence model."""
        if not self.recipe.has_labels:
            return rows
        task = self.recipe.glue_task or self.recipe.name
        texts = [name for name in ("text", "text_pair") if name in rows.column_names]
        fields = GLUE[task].texts[0] if self.recipe.glue_task else texts
        return to_text_to_text_rows(rows, self.label_names, task=task, fields=fields)


def _end_with_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let generation stop at the token with which the chat template ends a turn."""
    end, ends = turn_end(tokenizer), end_token_ids(model, tokenizer)
    if end is not None and end not in ends:
        model.generation_config.eos_token_id = [*ends, end]


def preservation_metrics(prepared: ModelAndData, model: torch.nn.Module) -> dict[str, float]:
    """Measure what the model still knows: the world's metrics, or perplexity on the recipe's texts."""
    if prepared.world is not None:
        return measure_world(model, prepared.tokenizer, prepared.world)
    if not prepared.texts:
        return {}
    context = context_length(model.config, prepared.tokenizer)
    return {"perplexity": perplexity(model, prepared.tokenizer, prepared.texts, context=context)}
