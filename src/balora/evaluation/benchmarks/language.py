"""What is measured on likelihoods or by lm-evaluation-harness itself: WikiText-2, and the harness's tasks."""

from pathlib import Path

from transformers import PreTrainedModel

from balora.data import expand_path, load_table
from balora.evaluation.benchmarks.writing import HUB, Benchmark, Writing
from balora.evaluation.harness import check_tasks, evaluate_with_harness
from balora.evaluation.perplexity import read_pages, split_pages, wikitext_perplexity


def wikitext2(writing: Writing, *, file: str | None = None, max_samples: int | None = None) -> Benchmark:
    """WikiText-2: perplexity by word and by byte, which do not depend on the vocabulary.

    Args:
        writing: For tokenizer, context and batch size.
        file: The set as it was published, a paragraph a line; `None` for the Hub's raw test set.
        max_samples: The first so many pages.
    """
    if file is not None:
        pages = read_pages(expand_path(file))
    else:
        source, hub = HUB["wikitext2"]
        pages = split_pages(line.removesuffix("\n") for line in load_table(source, **hub)["text"])

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        figures = wikitext_perplexity(
            model,
            writing.tokenizer,
            pages[:max_samples],
            context=writing.context,
            batch_size=writing.batch_size,
        )
        return {f"wikitext2_{name}": figures[name] for name in ("word_perplexity", "byte_perplexity")}

    return measure


def harness(
    writing: Writing,
    *,
    tasks: list[str],
    data_dir: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    max_gen_toks: int | None = None,
) -> Benchmark:
    """Tasks of lm-evaluation-harness; see `evaluate_with_harness`, whose arguments these are."""
    data_dir = data_dir and expand_path(data_dir)
    check_tasks(tasks, data_dir)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        found = evaluate_with_harness(
            model,
            writing.tokenizer,
            tasks,
            data_dir=data_dir,
            limit=limit,
            batch_size=writing.batch_size,
            num_fewshot=num_fewshot,
            max_gen_toks=max_gen_toks,
        )
        return {f"{task}_{name}": value for task, metrics in found.items() for name, value in metrics.items()}

    return measure
