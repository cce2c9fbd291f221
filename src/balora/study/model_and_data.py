"""Prepare everything that a recipe names: the model to load, tokenizer, datasets, texts and benchmarks."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)

from balora.data import context_length, expand_path, load_sentence_encoder, load_table, to_text_to_text_rows
from balora.data.chat_tokens import are_chats, check_chats, turn_end
from balora.data.columns import check_strings
from balora.data.glue import GLUE
from balora.data.sentences import SentenceEncoder
from balora.data.special_tokens import require_end, set_pad_token, without_added_start
from balora.data.truncation import first_kept
from balora.data.vocabulary import check_vocabulary, guard_embeddings
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import Measure
from balora.evaluation.perplexity import check_texts, perplexity
from balora.recipe import Recipe
from balora.recipe.methods import ANCHORS
from balora.recipe.paths import is_path
from balora.study.base_head import in_order_of_base, needs_new_head, renew_head
from balora.study.benchmarks import read_benchmarks
from balora.study.datasets import read_datasets, with_glue_data
from balora.study.questions import to_questions, with_prompts
from balora.study.swapped_rows import with_swapped_rows
from balora.study.task_datasets import Datasets
from balora.study.training_arguments import check_training_arguments
from balora.utils.distributed import is_sharded_launch
from balora.utils.loading import LOAD_ERRORS, drop_unsavable_generation_settings, first_line, load, rename
from balora.utils.sampling import end_token_ids
from balora.world import World, build_world, measure_world
from balora.world.reading import ReadingWorld, build_reading_world

#: Settings that are paths, or may be: counterfactual_words and swapped_rows name a list of balora's or a file.
PATHS = (
    *(name for name, hint in get_type_hints(Recipe, include_extras=True).items() if is_path(hint)),
    "counterfactual_words",
    "swapped_rows",
)
WORLD = "world:"


def with_paths(recipe: Recipe, world: World | None) -> Recipe:
    """Return the recipe with its own paths and its auxiliary task's expanded.

    Args:
        recipe: The recipe.
        world: The controlled world that it asks for; its folder is not known before it is built.

    Raises:
        BALoraError: If a path cannot be expanded.
    """
    own = {key: _expanded(key, value, world) for key in PATHS if (value := getattr(recipe, key))}
    auxiliary = {
        key: _expanded(f"auxiliary: {key}", value, world) if key in PATHS else value
        for key, value in recipe.auxiliary.items()
    }
    return replace(recipe, **own, auxiliary=auxiliary)


def _expanded(setting: str, value: str, world: World | None) -> str:
    if not value.startswith(WORLD):
        return expand_path(value)
    if world is None:
        raise BALoraError(
            f"{setting}: {value} is a file of the controlled world, which the recipe does not have; set `world`"
        )
    file = world.directory / value.removeprefix(WORLD)
    if not file.is_file():
        names = ", ".join(sorted(path.name for path in world.directory.glob("*.jsonl")))
        raise BALoraError(f"{setting}: {value} is not a file of the controlled world; there are {names}")
    return str(file)


MODEL = "model_name_or_path"
PACKAGE = "package:"


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


def prepare(recipe: Recipe, callbacks: tuple[TrainerCallback, ...] = ()) -> ModelAndData:
    """Read and validate everything that a recipe names, before anything is trained.

    Args:
        recipe: The recipe.
        callbacks: Callbacks that show the progress of building a controlled world.

    Raises:
        BALoraError: Naming the file, row or setting that is wrong.
    """
    check_training_arguments(recipe)
    world = None if recipe.world is None else build_world(recipe.world, callbacks=callbacks)
    reading = None if recipe.reading_world is None else build_reading_world(recipe.reading_world, callbacks=callbacks)
    for built in filter(None, (world, reading)):
        recipe = replace(
            recipe,
            world=None,
            reading_world=None,
            model_name_or_path=str(built.model_dir),
            train_file=str(built.train_file),
            validation_file=None if recipe.validation_share else str(built.eval_file),
        )
    named = recipe.model_name_or_path
    recipe = with_paths(recipe, world)
    encoder = None if recipe.sentence_encoder is None else load_sentence_encoder(recipe.sentence_encoder)
    tokenizer = load(AutoTokenizer, recipe.model_name_or_path, MODEL)
    set_pad_token(tokenizer, source=f"{MODEL}: {recipe.model_name_or_path}")
    if recipe.chat_template_path is not None:
        tokenizer.chat_template = _read_template(recipe.chat_template_path)
    recipe = with_glue_data(recipe)
    datasets = read_datasets(recipe, tokenizer)
    if recipe.is_classification:
        config = load(AutoConfig, recipe.model_name_or_path, MODEL)
        datasets = in_order_of_base(datasets, config, explicit=recipe.label_names is not None)
    if recipe.swapped_rows is not None:
        datasets = replace(datasets, train=with_swapped_rows(datasets.train, recipe.swapped_rows))
    sets = {"validation": datasets.validation, **datasets.others}
    check_training_arguments(recipe, [name for name, rows in sets.items() if rows is not None])
    if not (recipe.has_labels or recipe.is_seq2seq):
        datasets = _for_language_model(recipe, datasets, tokenizer)
    benchmarks = {}
    if recipe.benchmarks:
        config = load(AutoConfig, recipe.model_name_or_path, MODEL)
        benchmarks = read_benchmarks(recipe, tokenizer, config, datasets)
    texts = _texts(
        recipe.perplexity_file, recipe.perplexity_column, recipe.max_perplexity_samples, "perplexity_column"
    )
    if texts:
        check_texts(texts, tokenizer, source=f"perplexity_file: {recipe.perplexity_file}")
    own = None if recipe.knowledge_file == ANCHORS else recipe.knowledge_file
    knowledge = _texts(own, "text", None, "knowledge_file")
    if knowledge:
        check_texts(knowledge, tokenizer, source=f"knowledge_file: {own}")
    anchors = _texts(recipe.anchor_file, recipe.anchor_column, recipe.anchor_samples, "anchor_column")
    files = {"perplexity_file": texts, "knowledge_file": knowledge, "anchor_file": anchors}
    _check_vocabulary(recipe, tokenizer, datasets, files)
    return ModelAndData(
        recipe,
        named if named.startswith(PACKAGE) else recipe.model_name_or_path,
        tokenizer,
        datasets.train,
        datasets.validation,
        datasets.others,
        texts,
        anchors,
        datasets.label_names,
        world,
        benchmarks,
        encoder,
        None if reading is None else _single_questions(recipe, tokenizer, reading),
        knowledge,
    )


def _check_vocabulary(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, datasets: Datasets, texts: dict[str, list[str]]
) -> None:
    """Check that every token of the rows has an embedding, except for a stream's, which are checked as they are read.

    Args:
        recipe: The recipe.
        tokenizer: Its tokenizer.
        datasets: Its rows.
        texts: Texts by the setting that names their file.
    """
    config = load(AutoConfig, recipe.model_name_or_path, MODEL).get_text_config()
    sets = {"train": datasets.train, "validation": datasets.validation, **datasets.others}
    rows = {f"the {name} rows": rows for name, rows in sets.items() if isinstance(rows, Dataset)}
    rows |= {f"{name} {getattr(recipe, name)}": own for name, own in texts.items()}
    if tokenizer.chat_template is not None and not recipe.is_classification and are_chats(datasets.train):
        rows["the chat template"] = [str(tokenizer.chat_template)]
    embeddings = getattr(config, "vocab_size", None) or len(tokenizer)
    check_vocabulary(tokenizer, embeddings, rows, source=f"{MODEL}: {recipe.model_name_or_path}")


def _for_language_model(recipe: Recipe, datasets: Datasets, tokenizer: PreTrainedTokenizerBase) -> Datasets:
    """Check that the tokenizer renders or ends every row; return the rows with the added start token once."""
    if "assistant_only_loss" in recipe.training_arguments:
        raise BALoraError(
            "training_arguments: assistant_only_loss is a key of the recipe; set it there, outside training_arguments"
        )
    if recipe.assistant_only_loss is not None and not are_chats(datasets.train):
        raise BALoraError(
            "assistant_only_loss: only conversations have an assistant, and the train rows are none; leave it out"
        )

    def checked(rows: Dataset | IterableDataset | None, name: str) -> Dataset | IterableDataset | None:
        if rows is None:
            return None
        if are_chats(rows):
            only = recipe.assistant_only_loss is not False
            check_chats(rows, tokenizer, source=f"{name} rows", assistant_only_loss=only)
        else:
            require_end(tokenizer, source=f"{MODEL}: {recipe.model_name_or_path}")
            rows = without_added_start(rows, tokenizer, source=f"{name} rows")
        if isinstance(rows, Dataset):
            first_kept(rows, tokenizer, source=f"the {name} rows", max_length=recipe.max_length)
        return rows

    return replace(
        datasets,
        train=checked(datasets.train, "train"),
        validation=checked(datasets.validation, "validation"),
        others={name: checked(rows, name) for name, rows in datasets.others.items()},
    )


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


def _single_questions(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, reading: ReadingWorld) -> Dataset:
    source = str(reading.single_file)
    return with_prompts(recipe, tokenizer, to_questions(recipe, load_table(source), source), source)


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"chat_template_path: {path}: cannot read this file ({error})") from error


def _texts(file: str | None, column: str, limit: int | None, setting: str) -> list[str]:
    if file is None:
        return []
    rows = load_table(file)
    if column not in rows.column_names:
        raise BALoraError(f"{setting}: {file} has no column {column!r}; there are {', '.join(rows.column_names)}")
    texts = rows[column][:limit]
    check_strings(texts, source=file, column=column, blank=True)
    return texts
