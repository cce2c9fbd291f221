"""Perplexity on WikiText by word and by byte, so that models with different vocabularies compare.

Pages, text and windows are those of the task `wikitext` in lm-evaluation-harness (Gao et al., 2024), so figures are
those that papers print; without it installed, and in a few lines that a study can call between runs.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.evaluation.language import IGNORED, held_out_loss, padded_batches

#: From WikiText's tokens to text as people write it: patterns and what replaces them, one after the other. The
#: harness has one more, which matches a quotation mark and a digit between slashes and puts a pattern in their place.
DETOKENIZATION = (
    ("s '", "s'"),
    *((f" @{re.escape(mark)}@ ", mark) for mark in "-,."),
    *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def read_pages(path: str | Path) -> list[str]:
    """The pages of a file of WikiText as it was published, one paragraph or heading a line.

    Raises:
        BALoraError: If there is no such file, or no text in it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BALoraError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    pages = split_pages(text.split("\n"))
    if not pages:
        raise BALoraError(f"{path}: holds no text")
    return pages


def split_pages(lines: Iterable[str]) -> list[str]:
    """Lines joined into pages, each from one first-level heading, ` = Title = `, up to the next.

    Blank lines stay, since their bytes are counted. A line of a page that only looks like a heading begins one as
    well (` = 1 <unk> / s and a nominal <unk> k = ` in the test set), as it does in the harness's data set.
    """
    pages: list[list[str]] = [[]]
    for line in lines:
        if _is_title(line):
            pages.append([])
        pages[-1].append(line)
    return [page for page in map("\n".join, pages) if page.strip()]


def _is_title(line: str) -> bool:
    line = line.strip()
    outside = line.startswith("= ") and line.endswith(" =")
    return outside and not line.startswith("= =") and not line.endswith("= =")


def detokenize(page: str) -> str:
    """A page as text: `the two @-@ part episode , " Teddy 's Story "` is `the two-part episode, "Teddy's Story"`."""
    for pattern, replacement in DETOKENIZATION:
        page = re.sub(pattern, replacement, page)
    return page


def wikitext_perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pages: Sequence[str],
    *,
    context: int | None,
    batch_size: int = 16,
) -> dict[str, float]:
    """Perplexities of pages, every token of which is predicted once.

    With L = −Σ log p(token | its window so far) in nats over all pages, they are exp(L / words), exp(L / bytes),
    L / (bytes · ln 2) and exp(L / tokens). Words and bytes are counted before detokenization, tokens after it. A
    page's first window begins with `<s>` (the token that ends a text, where there is none), the next ones with the
    last token of the one before, and its last one earlier, so that it is as long as the others.

    Args:
        model: A causal language model; left in the mode it was in.
        tokenizer: Its tokenizer. Special tokens that it adds are predicted too.
        pages: From `read_pages`.
        context: Longest window in tokens, at most the model's own; `None` for whole pages.
        batch_size: Windows at a time.

    Returns:
        `word_perplexity`, `byte_perplexity`, `bits_per_byte`, `token_perplexity`.

    Raises:
        BALoraError: If the tokenizer has no token for a text's beginning or end.
    """
    windows = [window for page in pages for window in page_windows(tokenizer, page, context)]
    windows.sort(key=lambda window: len(window[0]))  # so that little is padding
    tokens = sum(label != IGNORED for _, labels in windows for label in labels)
    loss = tokens * held_out_loss(model, padded_batches(windows, batch_size))
    words = sum(map(page_words, pages))
    size = sum(len(page.encode()) for page in pages)
    return {
        "word_perplexity": math.exp(loss / words),
        "byte_perplexity": math.exp(loss / size),
        "bits_per_byte": loss / size / math.log(2),
        "token_perplexity": math.exp(loss / tokens),
    }


def page_words(page: str) -> int:
    """How many words `word_perplexity` counts in a page."""
    return len(re.split(r"\s+", page))


def page_windows(
    tokenizer: PreTrainedTokenizerBase, page: str, context: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Input ids and labels of each window of a page, labels one longer: an id's is the one after its own.

    Raises:
        BALoraError: If the tokenizer has no token for a text's beginning or end.
    """
    prefix = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if prefix is None:
        raise BALoraError(
            "tokenizer: has neither bos_token nor eos_token; set one, so that a page's first token follows it"
        )
    ids = tokenizer(detokenize(page), verbose=False)["input_ids"]
    before = [prefix, *ids]
    width = context or len(ids)
    for start in range(0, len(ids), width):
        end = min(start + width, len(ids))
        first = max(end - width, 0)
        yield before[first:end], [IGNORED] * (1 + start - first) + ids[start:end]
