"""How long a row may be: never longer than the model's context, and never cut unless the user said where.

The same rule holds for every task. `max_length` is the user's permission to truncate; without it a row that is too
long is an error, not a quietly shorter row.
"""

from collections.abc import Iterable

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from balora.errors import BALoraError


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens a model takes at once, or `None` where its positions have no end.

    The smaller of the configuration's `max_position_embeddings` and the tokenizer's `model_max_length`: RoBERTa and
    its kin count two positions that no token can take, and only their tokenizers know.
    """
    # Not every architecture has the field: ALiBi and state-space models count no positions, and XLNet says -1.
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    return min(positions, tokenizer.model_max_length)


def check_max_length(max_length: int | None, context: int | None, *, setting: str = "max_length") -> None:
    """Hold the user's `max_length`, or another setting of its kind, against the model's context.

    Raises:
        BALoraError: If it is below 1 or beyond the context.
    """
    if max_length is None:
        return
    if max_length < 1:
        raise BALoraError(f"{setting}: {max_length} is not a number of tokens; use at least 1")
    if context is not None and max_length > context:
        raise BALoraError(
            f"{setting}: {max_length} is beyond the model's context of {context} tokens; use at most that"
        )


def check_lengths(
    lengths: Iterable[int],
    *,
    source: str,
    max_length: int | None,
    context: int | None,
    setting: str = "max_length",
    first_row: int = 1,
) -> None:
    """Require that every row fits the context, unless `max_length` says where to cut it.

    Args:
        lengths: Tokens of each row before any truncation.
        source: File or Hub name the rows came from, for errors.
        max_length: The user's limit, to which rows may be truncated.
        context: Tokens the model takes, from `context_length`.
        setting: The limit's name, for errors.
        first_row: Number of the first length's row.

    Raises:
        BALoraError: If `max_length` does not fit the model, or is not set and a row is too long.
    """
    check_max_length(max_length, context, setting=setting)
    if max_length is not None or context is None:
        return
    for row, length in enumerate(lengths, start=first_row):
        if length > context:
            raise BALoraError(
                f"{source}, row {row}: {length} tokens, but the model's context is {context}; "
                f"set {setting}: {context} to truncate"
            )
