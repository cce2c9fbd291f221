"""A recipe's benchmarks: settings validated, and questions put as the recipe's training rows are."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.data import context_length
from balora.data.chat_tokens import are_chats
from balora.data.special_tokens import added_tokens
from balora.errors import BALoraError
from balora.evaluation.benchmarks import BIAS, CAUSAL, CLASSIFIER, PromptSettings, benchmarks_for, prepare
from balora.evaluation.benchmarks.benchmark import GIVEN, Measure
from balora.evaluation.metric import Estimate
from balora.recipe import Recipe
from balora.recipe.parse import keyword_arguments
from balora.study.task_datasets import Datasets
from balora.utils.batches import TOKEN_BUDGET

#: Folder, in that of a run, for what its model wrote.
FOLDER = "benchmarks"


def read_benchmarks(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, datasets: Datasets
) -> dict[str, Measure]:
    """Read the problems of every benchmark in the recipe, and check that they fit the model.

    Raises:
        BALoraError: Naming the benchmark and what is wrong with it.
    """
    prompts = _prompt_settings(recipe, tokenizer, config, datasets)
    known = benchmarks_for(prompts.kind)
    measures = {}
    for name, settings in recipe.benchmarks.items():
        if name not in known:
            raise BALoraError(f"benchmarks: unknown {name!r}; for this model there are {', '.join(known)}")
        try:
            arguments = keyword_arguments(known[name].read, settings, given={*GIVEN})
            measures[name] = prepare(known[name], prompts, **arguments)
        except BALoraError as error:
            raise BALoraError(f"benchmarks: {name}: {error}") from error
    return measures


def run_benchmarks(benchmarks: dict[str, Measure], model: PreTrainedModel, directory: Path) -> dict[str, Estimate]:
    """Measure all benchmarks; what the model wrote is kept in the run's folder."""
    found: dict[str, Estimate] = {}
    for measure in benchmarks.values():
        found |= measure(model, directory / FOLDER)
    return found


def run_bias_benchmarks(benchmarks: dict[str, Measure], model: PreTrainedModel, directory: Path) -> dict[str, float]:
    """Measure those of the benchmarks that measure bias."""
    own = {name: benchmarks[name] for name in BIAS if name in benchmarks}
    return {name: found.value for name, found in run_benchmarks(own, model, directory).items()}


def _prompt_settings(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, datasets: Datasets
) -> PromptSettings:
    common = {
        "tokenizer": tokenizer,
        "batch_size": recipe.per_device_eval_batch_size,
        "context": context_length(config, tokenizer),
        "token_budget": recipe.per_device_train_batch_size * recipe.max_length if recipe.max_length else TOKEN_BUDGET,
        "embeddings": getattr(config.get_text_config(), "vocab_size", None),
    }
    if recipe.is_classification:
        return PromptSettings(
            **common,
            kind=CLASSIFIER,
            max_length=recipe.max_length,
            label_names=datasets.label_names,
            training_texts=datasets.spent,
        )
    return PromptSettings(
        **common,
        kind=CAUSAL,
        format_prompt=_prompt_format(recipe, tokenizer, are_chats(datasets.train)),
        instructed=are_chats(datasets.train) or recipe.prompt_template is not None,
    )


def _prompt_format(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, chat: bool) -> Callable[[str], str]:
    """Return the function from a question to the text before its answer in training."""
    start, _ = added_tokens(tokenizer)  # the tokenizer adds it again
    if chat:

        def format_prompt(question: str) -> str:
            messages = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return text.removeprefix(start)

        return format_prompt
    template = recipe.prompt_template or "{prompt}"
    return lambda question: template.replace("{prompt}", question).removeprefix(start)
