"""Check the tokenizer's special tokens: the one that pads, the one that ends a text, the one that begins it."""

import warnings
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from balora.errors import BALoraError

#: Label of a token that does not count in the loss.
IGNORED = -100


def set_pad_token(tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Pad with the end-of-text token if the tokenizer has no padding token.

    Args:
        tokenizer: Changed in place.
        source: Name of the model, for errors.

    Raises:
        BALoraError: If the tokenizer has neither.
    """
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise BALoraError(
            f"{source}: the tokenizer has neither a pad_token nor an eos_token, and batches are padded with one; "
            "set pad_token in its tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token


def require_end(tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Require an end-of-text token, which is put behind every text and completion that is trained on.

    Args:
        tokenizer: The model's tokenizer.
        source: Name of the model, for errors.

    Raises:
        BALoraError: If the tokenizer has none.
    """
    if tokenizer.eos_token is None:
        raise BALoraError(
            f"{source}: the tokenizer has no eos_token, which ends every text and completion in training; set "
            "eos_token in its tokenizer_config.json"
        )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Return the special tokens, as text, that the tokenizer puts before and behind every text; empty without any."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(ids)) if ids[i : i + len(bare)] == bare), 0)
    return tokenizer.decode(ids[:start]), tokenizer.decode(ids[start + len(bare) :])


def without_added_start(
    rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, *, source: str
) -> Dataset | IterableDataset:
    """Remove from texts and prompts the start token that the tokenizer adds itself, so that rows have it once.

    Args:
        rows: From `to_causal_lm_rows` or `stream_causal_lm_rows`; conversations are returned as they are, since a
            chat template writes its own.
        tokenizer: The model's tokenizer.
        source: Name of the rows, for the warning.
    """
    first = next(iter(rows), {})
    column = next((name for name in ("prompt", "text") if isinstance(first.get(name), str)), None)
    start, _ = added_tokens(tokenizer)
    if column is None or not start:
        return rows

    def remove(text: str) -> str:
        return text.removeprefix(start)

    if isinstance(rows, IterableDataset):
        if remove(first[column]) != first[column]:
            _warn(source, start)
        return rows.map(lambda row: {column: remove(row[column])})
    texts = rows[column][:]
    shorter = list(map(remove, texts))
    if shorter == texts:
        return rows
    _warn(source, start)
    return rows.map(lambda text: {column: remove(text)}, input_columns=column)


def tokenize_texts_once_ended(
    rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, *, completion_only_loss: bool = True
) -> Dataset | IterableDataset:
    """Tokenize texts, or prompts and completions, if the tokenizer ends them itself; TRL would end them twice.

    Args:
        rows: From `to_causal_lm_rows` or `stream_causal_lm_rows`, no conversations.
        tokenizer: The model's tokenizer.
        completion_only_loss: Whether prompts do not count in the loss.

    Returns:
        `input_ids` and `labels` beside the rows' other columns; the rows as they are if TRL ends them.
    """
    start, end = added_tokens(tokenizer)
    if not end.strip().startswith(tokenizer.eos_token):
        return rows

    def tokenize(row: dict[str, Any]) -> dict[str, list[int]]:
        text = row["prompt"] + row["completion"] if "prompt" in row else row["text"]
        ids = tokenizer(text.removesuffix(tokenizer.eos_token), verbose=False)["input_ids"]
        prompt: list[int] = []
        if "prompt" in row and completion_only_loss:
            prompt = tokenizer(start + row["prompt"], add_special_tokens=False, verbose=False)["input_ids"]
        first = common_prefix_length(prompt, ids)
        return {"input_ids": ids, "labels": [IGNORED] * first + ids[first:]}

    columns = rows.column_names or list(next(iter(rows)))
    return rows.map(tokenize, remove_columns=[name for name in ("prompt", "completion", "text") if name in columns])


def _warn(source: str, start: str) -> None:
    warnings.warn(
        f"balora: {source}: texts begin with {start}, which the tokenizer adds itself; it is kept once", stacklevel=3
    )
