"""A recipe's benchmarks: their settings checked, and questions put as the recipe's training rows are."""

from collections.abc import Callable
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from balora.data import context_length
from balora.errors import BALoraError
from balora.evaluation.benchmarks import (
    BENCHMARKS,
    BIAS,
    CLASSIFIER_BENCHMARKS,
    Benchmark,
    Classifying,
    Writing,
)
from balora.recipe import Recipe
from balora.recipe.parse import keyword_arguments
from balora.study.task_datasets import Datasets

#: Folder of what a run's model wrote.
FOLDER = "benchmarks"


def read_benchmarks(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, sets: Datasets
) -> dict[str, Benchmark]:
    """Every benchmark that the recipe names, its problems read and found to fit the model.

    Raises:
        BALoraError: Naming the benchmark and what is wrong with it.
    """
    if recipe.is_classification:
        known, asking = CLASSIFIER_BENCHMARKS, _classifying(recipe, tokenizer, sets)
    else:
        known, asking = BENCHMARKS, _writing(recipe, tokenizer, config)
    made = {}
    for name, settings in recipe.benchmarks.items():
        if name not in known:
            raise BALoraError(f"benchmarks: unknown {name!r}; for this model there are {', '.join(known)}")
        try:
            own = keyword_arguments(known[name], settings, given={"writing", "classifying"})
            made[name] = known[name](asking, **own)
        except BALoraError as error:
            raise BALoraError(f"benchmarks: {name}: {error}") from error
    return made


def run_benchmarks(benchmarks: dict[str, Benchmark], model: PreTrainedModel, directory: Path) -> dict[str, float]:
    """The figures of all benchmarks; what the model wrote is kept in the run's folder."""
    figures: dict[str, float] = {}
    for measure in benchmarks.values():
        figures |= measure(model, directory / FOLDER)
    return figures


def run_bias_benchmarks(benchmarks: dict[str, Benchmark], model: PreTrainedModel, directory: Path) -> dict[str, float]:
    """Those of them that measure bias."""
    return run_benchmarks({name: benchmarks[name] for name in BIAS if name in benchmarks}, model, directory)


def _classifying(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, sets: Datasets) -> Classifying:
    return Classifying(
        tokenizer=tokenizer,
        label_names=sets.label_names,
        spent=sets.spent,
        max_length=recipe.max_length,
        batch_size=recipe.per_device_eval_batch_size,
    )


def _writing(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> Writing:
    return Writing(
        tokenizer=tokenizer,
        context=context_length(config, tokenizer),
        put=_asking(recipe, tokenizer),
        instructed=recipe.is_chat or recipe.prompt_template is not None,
        batch_size=recipe.per_device_eval_batch_size,
    )


def _asking(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """From a question to the text that stands before an answer in training."""
    if recipe.is_chat:
        start = tokenizer.bos_token or ""

        def put(question: str) -> str:
            messages = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return text.removeprefix(start)  # the tokenizer sets it again

        return put
    template = recipe.prompt_template or "{prompt}"
    return lambda question: template.replace("{prompt}", question)
