"""Prepare everything that a recipe names: tokenizer, datasets, texts and benchmarks, validated before training."""

from dataclasses import replace
from pathlib import Path

from datasets import Dataset, IterableDataset
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase, TrainerCallback

from balora.data import load_sentence_encoder, load_table
from balora.data.chat_tokens import are_chats, check_chats
from balora.data.columns import check_strings
from balora.data.special_tokens import require_end, set_pad_token, without_added_start
from balora.data.truncation import first_kept
from balora.data.vocabulary import check_vocabulary
from balora.errors import BALoraError
from balora.evaluation.perplexity import check_texts
from balora.recipe import Recipe
from balora.recipe.methods import ANCHORS
from balora.study.base_head import in_order_of_base
from balora.study.benchmarks import read_benchmarks
from balora.study.datasets import read_datasets, with_glue_data
from balora.study.model_and_data import MODEL, ModelAndData
from balora.study.paths import with_paths
from balora.study.questions import to_questions, with_prompts
from balora.study.swapped_rows import with_swapped_rows
from balora.study.task_datasets import Datasets
from balora.study.training_arguments import check_training_arguments
from balora.utils.loading import load
from balora.world import build_world
from balora.world.reading import ReadingWorld, build_reading_world

PACKAGE = "package:"


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
    config = load(AutoConfig, recipe.model_name_or_path, MODEL)
    recipe = with_glue_data(recipe)
    datasets = read_datasets(recipe, tokenizer)
    if recipe.is_classification:
        datasets = in_order_of_base(datasets, config, explicit=recipe.label_names is not None)
    if recipe.swapped_rows is not None:
        datasets = replace(datasets, train=with_swapped_rows(datasets.train, recipe.swapped_rows))
    sets = {"validation": datasets.validation, **datasets.others}
    check_training_arguments(recipe, [name for name, rows in sets.items() if rows is not None])
    if not (recipe.has_labels or recipe.is_seq2seq):
        datasets = _for_language_model(recipe, datasets, tokenizer)
    benchmarks = {}
    if recipe.benchmarks:
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
    _check_vocabulary(recipe, config, tokenizer, datasets, files)
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
    recipe: Recipe,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    datasets: Datasets,
    texts: dict[str, list[str]],
) -> None:
    """Check that every token of the rows has an embedding, except for a stream's, which are checked as they are read.

    Args:
        recipe: The recipe.
        config: The model's configuration.
        tokenizer: Its tokenizer.
        datasets: The recipe's rows.
        texts: Texts by the setting that names their file.
    """
    sets = {"train": datasets.train, "validation": datasets.validation, **datasets.others}
    rows = {f"the {name} rows": rows for name, rows in sets.items() if isinstance(rows, Dataset)}
    rows |= {f"{name} {getattr(recipe, name)}": own for name, own in texts.items()}
    if tokenizer.chat_template is not None and not recipe.is_classification and are_chats(datasets.train):
        rows["the chat template"] = [str(tokenizer.chat_template)]
    embeddings = getattr(config.get_text_config(), "vocab_size", None) or len(tokenizer)
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
