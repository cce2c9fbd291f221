"""WikiText-2 as a benchmark: perplexity by word and by byte, which do not depend on the vocabulary."""

from collections.abc import Sequence

from transformers import PreTrainedModel

from balora.data import expand_path, load_table
from balora.evaluation.benchmarks.benchmark import HUB, Benchmark, PromptSettings
from balora.evaluation.metric import Definition, Units, without_units
from balora.evaluation.perplexity import read_pages, split_pages, wikitext_perplexity


def _read(*, file: str | None = None, max_samples: int | None = None) -> list[str]:
    """Read WikiText-2's pages.

    Args:
        file: The dataset as it was published, a paragraph a line; `None` for the Hub's raw test set.
        max_samples: The first so many pages.
    """
    if file is not None:
        return read_pages(expand_path(file))[:max_samples]
    source, hub = HUB["wikitext2"]
    return split_pages(line.removesuffix("\n") for line in load_table(source, **hub)["text"])[:max_samples]


def _ask(model: PreTrainedModel, pages: Sequence[str], prompts: PromptSettings) -> dict[str, float]:
    return wikitext_perplexity(model, prompts.tokenizer, pages, context=prompts.context, **prompts.batching)


def _metrics(_: Sequence[str], found: dict[str, float]) -> dict[str, Units]:
    return without_units({f"wikitext2_{name}": found[name] for name in ("word_perplexity", "byte_perplexity")})


WIKITEXT2 = Benchmark(
    name="wikitext2",
    title="WikiText-2",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    unit="set",  # perplexities of all pages together, without an interval; an audit's `wikitext2: FILE` has one
    definitions={
        "wikitext2_word_perplexity": Definition(
            "lower", "Perplexity of WikiText-2 per word, which does not depend on the vocabulary.", decimals=2
        ),
        "wikitext2_byte_perplexity": Definition("lower", "Perplexity of WikiText-2 per byte of text.", decimals=2),
    },
)
