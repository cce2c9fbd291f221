"""Classification rows as the model's input. (For causal language models TRL's trainer does this itself.)"""

from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.lengths import check_lengths, check_max_length


def tokenize_classification(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    max_length: int | None = None,
    context: int | None = None,
) -> Dataset:
    """Tokenize rows of `to_classification_rows`, without padding.

    Args:
        dataset: Columns `text`, `text_pair` if there are two texts, and `label`.
        tokenizer: The model's.
        source: File or Hub name the rows came from, for errors.
        max_length: Truncate rows to this many tokens, special ones included, the longer text of a pair first. `None`
            never truncates.
        context: Tokens the model takes, from `balora.data.context_length`.

    Returns:
        What the tokenizer gives (`input_ids`, `attention_mask`, perhaps `token_type_ids`), and `labels`.

    Raises:
        BALoraError: If a row is longer than the context and `max_length` is not set, or `max_length` does not fit the
            model or leaves no room for text.
    """
    check_max_length(max_length, context)
    paired = "text_pair" in dataset.column_names
    special = tokenizer.num_special_tokens_to_add(pair=paired)
    if max_length is not None and max_length <= special:
        raise BALoraError(
            f"max_length: {max_length} leaves no room for text beside {special} special tokens; use more"
        )

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        # Too long a row is our error to raise, not the tokenizer's to warn of: hence verbose=False.
        encoded = tokenizer(
            batch["text"],
            batch.get("text_pair"),
            truncation=max_length is not None,
            max_length=max_length,
            verbose=False,
        )
        return {**encoded, "labels": batch["label"]}

    tokenized = dataset.map(encode, batched=True, remove_columns=dataset.column_names)
    check_lengths(map(len, tokenized["input_ids"]), source=source, max_length=max_length, context=context)
    return tokenized
