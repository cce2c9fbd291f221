"""Find the rows that a length limit truncates: those that lose their completion, and those that lose their end."""

from collections.abc import Callable, Iterable, Sized
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.lengths import report_truncation


def first_kept(rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, source: str, max_length: int | None) -> int:
    """Return the index of the first row that keeps a part of its completion.

    The trainer counts the rows that lose theirs, once it tokenizes them all.

    Args:
        rows: From `to_causal_lm_rows`.
        tokenizer: The model's tokenizer.
        source: File or name of the rows, for errors.
        max_length: The limit in tokens, to which prompt and completion are truncated; `None` truncates nothing.

    Raises:
        BALoraError: If every completion is truncated away.
    """
    for index, row in enumerate(rows):
        if max_length is None or prompt_length(row, tokenizer) < max_length:
            return index
    raise BALoraError(f"max_length: {max_length} leaves nothing to learn in any row of {source}; use more")


def prompt_length(row: dict, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the number of tokens before a row's completion, 0 for a row without a prompt."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if not prompt:
        return 0
    if isinstance(prompt, str):
        asked, answered, special = prompt, prompt + completion, True
    elif tokenizer.chat_template is None:
        return 0  # the missing template is an error of its own
    else:
        asked = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        answered = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        special = False
    ids, others = (
        tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"] for text in (asked, answered)
    )
    # TRL, too, lets the completion begin where the two differ.
    differing = (place for place, (one, other) in enumerate(zip(ids, others, strict=False)) if one != other)
    return next(differing, min(len(ids), len(others)))


def report_cut(
    kept: Iterable[Sized],
    texts: Iterable[tuple[str, ...]],
    whole: Callable[..., Any],
    *,
    source: str,
    limit: int,
    setting: str = "max_length",
) -> None:
    """Warn of the rows that lost their end to a limit.

    Args:
        kept: Tokens of each row after truncation.
        texts: Text of each row, or its two texts.
        whole: Function that tokenizes a row's texts without truncation. It is called for rows as long as the limit.
        source: File or name of the rows.
        limit: The limit in tokens.
        setting: Name of the limit.
    """
    cut, count = [], 0
    for count, (ids, own) in enumerate(zip(kept, texts, strict=True), start=1):
        if len(ids) == limit and len(whole(*own)["input_ids"]) > limit:
            cut.append(count)
    report_truncation(cut, [], count, source=source, max_length=limit, setting=setting)
