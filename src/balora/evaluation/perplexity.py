"""Held-out loss and perplexity of texts, and perplexity on WikiText by word and by byte.

WikiText's pages, text and windows are those of the task `wikitext` in lm-evaluation-harness (Gao et al., 2024), so the
numbers compare with published ones. Perplexity by word or byte compares models with different vocabularies.
"""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.fused import TokenScorer
from balora.utils.batches import TOKEN_BUDGET, token_batches, with_decoder_inputs
from balora.utils.progress import tracked

IGNORED = -100


@torch.no_grad()
def held_out_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> float:
    """Return the mean negative log-likelihood in nats over all labelled tokens.

    Args:
        model: A causal or sequence-to-sequence language model.
        batches: Inputs with `labels`, −100 for tokens that do not count. A causal model's logits predict the label of
            the next position, a sequence-to-sequence model's that of the same position. A causal model's labels may be
            one longer than its ids, so that the last id has a label too.
    """
    device = next(model.parameters()).device
    score, total, count = TokenScorer(model), 0.0, 0
    for batch in tracked(batches, "measuring the loss"):
        inputs = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        labels = inputs.pop("labels")  # (B, S)
        shift = 1
        if model.config.is_encoder_decoder:
            inputs, shift = with_decoder_inputs(model, inputs, labels), 0
        targets = labels[:, shift:]
        counted = targets != IGNORED
        total -= score(inputs, targets, counted).log_p.sum().item()
        count += int(counted.sum())
    return total / count


def perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    context: int | None,
    batch_size: int = 16,
    token_budget: int = TOKEN_BUDGET,
) -> float:
    """Return exp of the mean negative log-likelihood per token over all texts.

    The first token of a text (`<s>`, if the tokenizer adds it) is given and the rest are predicted. A text longer than
    the context is read in windows that advance by half a context: every token after the first window has at least
    half a context before it, and each token is counted once.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        texts: Texts of at least two tokens; shorter ones are ignored.
        context: Maximum window in tokens; `None`: no limit.
        batch_size: Windows per batch at most.
        token_budget: Tokens per batch at most, padding included; a longer window is read alone.
    """
    windows = [w for text in texts for w in text_windows(tokenizer(text, verbose=False)["input_ids"], context)]
    return math.exp(held_out_loss(model, [batch for _, batch in padded_batches(windows, batch_size, token_budget)]))


def check_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Warn of texts that `perplexity` ignores, since they have fewer than two tokens.

    Raises:
        BALoraError: If it would ignore them all.
    """
    short = [number for number, text in enumerate(texts, 1) if len(tokenizer(text, verbose=False)["input_ids"]) < 2]
    if len(short) == len(texts):
        raise BALoraError(f"{source}: no text has two tokens, of which the second is predicted; give longer texts")
    if short:
        warnings.warn(
            f"balora: {source}: {len(short)} of {len(texts)} texts have fewer than two tokens and are left out, text "
            f"{short[0]} first",
            stacklevel=2,
        )


def text_windows(ids: list[int], context: int | None) -> Iterator[tuple[list[int], list[int]]]:
    """Yield input ids and labels of each window of a text; a text of fewer than two tokens has no windows."""
    if len(ids) < 2:
        return
    width = min(len(ids), context or len(ids))
    yield ids[:width], ids[:width]
    counted = width
    while counted < len(ids):
        end = min(counted + width // 2, len(ids))
        start = end - width
        yield ids[start:end], [IGNORED] * (counted - start) + ids[counted:end]
        counted = end


def padded_batches(
    windows: Sequence[tuple[list[int], list[int]]], batch_size: int, token_budget: int = TOKEN_BUDGET
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield the indices of windows of similar length, and their batch for `held_out_loss`, padded on the right.

    Args:
        windows: Input ids and labels of each; labels are as long as the ids, or one longer in all windows.
        batch_size: As in `token_batches`.
        token_budget: As in `token_batches`.
    """
    for part in token_batches([len(ids) for ids, _ in windows], batch_size, token_budget):
        batch = [windows[i] for i in part]
        length = max(len(ids) for ids, _ in batch)
        rows = [(length - len(ids), ids, labels) for ids, labels in batch]
        yield (
            part,
            {
                "input_ids": torch.tensor([ids + [0] * short for short, ids, _ in rows]),
                "attention_mask": torch.tensor([[1] * len(ids) + [0] * short for short, ids, _ in rows]),
                "labels": torch.tensor([labels + [IGNORED] * short for short, _, labels in rows]),
            },
        )


#: Pattern and replacement, applied in order, from WikiText's tokens to plain text. The harness has one more pattern,
#: which matches a quotation mark and a digit between slashes and inserts a pattern by mistake.
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
    """Read the pages of a WikiText file as published, one paragraph or heading per line.

    Raises:
        BALoraError: If the file does not exist or has no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BALoraError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    pages = split_pages(text.split("\n"))
    if not pages:
        raise BALoraError(f"{path}: contains no text")
    return pages


def split_pages(lines: Iterable[str]) -> list[str]:
    """Join lines into pages, each from one first-level heading, ` = Title = `, to the next.

    Blank lines stay, since their bytes are counted. A line that only looks like a heading also begins a page
    (` = 1 <unk> / s and a nominal <unk> k = ` in the test set), as in the harness's dataset.
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
    """Return a page as plain text.

    `the two @-@ part episode , " Teddy 's Story "` becomes `the two-part episode, "Teddy's Story"`.
    """
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
    token_budget: int = TOKEN_BUDGET,
) -> dict[str, float]:
    """Return the perplexities of pages, with every token predicted once.

    With L = −Σ log p(token | its window so far) in nats over all pages, they are exp(L / words), exp(L / bytes),
    L / (bytes · ln 2) and exp(L / tokens). Words and bytes are counted before detokenization, tokens after it. A
    page's first window begins with `<s>` (or the end-of-text token if the tokenizer has no `<s>`), each further window
    with the last token of the previous one; the last window begins earlier, so that it is as long as the others.

    Args:
        model: A causal language model; its training mode is unchanged.
        tokenizer: Its tokenizer. Special tokens that it adds are predicted too.
        pages: From `read_pages`.
        context: Maximum window in tokens, at most the model's context; `None`: whole pages.
        batch_size: Windows per batch at most.
        token_budget: Tokens per batch at most, padding included; a longer window is read alone.

    Returns:
        `word_perplexity`, `byte_perplexity`, `bits_per_byte`, `token_perplexity`.

    Raises:
        BALoraError: If the tokenizer has no token for a text's beginning or end.
    """
    windows = [window for page in pages for window in page_windows(tokenizer, page, context)]
    tokens = sum(label != IGNORED for _, labels in windows for label in labels)
    loss = tokens * held_out_loss(model, [batch for _, batch in padded_batches(windows, batch_size, token_budget)])
    words = sum(map(page_words, pages))
    size = sum(len(page.encode()) for page in pages)
    return {
        "word_perplexity": math.exp(loss / words),
        "byte_perplexity": math.exp(loss / size),
        "bits_per_byte": loss / size / math.log(2),
        "token_perplexity": math.exp(loss / tokens),
    }


def page_words(page: str) -> int:
    """Return the number of words that `word_perplexity` counts in a page."""
    return len(re.split(r"\s+", page))


def page_windows(
    tokenizer: PreTrainedTokenizerBase, page: str, context: int | None
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield input ids and labels of each window of a page; labels have one token more than the ids.

    Raises:
        BALoraError: If the tokenizer has no token for a text's beginning or end.
    """
    prefix = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if prefix is None:
        raise BALoraError(
            "tokenizer: has neither bos_token nor eos_token; set one, since it comes before a page's first token"
        )
    ids = tokenizer(detokenize(page), verbose=False)["input_ids"]
    before = [prefix, *ids]
    width = context or len(ids)
    for start in range(0, len(ids), width):
        end = min(start + width, len(ids))
        first = max(end - width, 0)
        yield before[first:end], [IGNORED] * (1 + start - first) + ids[start:end]
