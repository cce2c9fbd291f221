"""Length limits: rows never exceed the model's context, and are truncated only if the user set a length.

The rule is the same for every task. `max_length` permits truncation; without it a row that is too long is an error.
"""

from collections.abc import Iterable

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from balora.errors import BALoraError


def context_length(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the model's context length in tokens; `None` if its positions are unlimited.

    The smaller of the configuration's `max_position_embeddings` and the tokenizer's `model_max_length`: RoBERTa
    variants reserve two positions that no token can take, and only their tokenizers account for them.
    """
    # ALiBi and state-space models have no such field, and XLNet sets it to -1.
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    return min(positions, tokenizer.model_max_length)


def check_max_length(max_length: int | None, context: int | None, *, setting: str = "max_length") -> None:
    """Validate `max_length`, or another length setting, against the model's context.

    Raises:
        BALoraError: If it is below 1 or beyond the context.
    """
    if max_length is None:
        return
    if max_length < 1:
        raise BALoraError(f"{setting}: {max_length} is too small; use at least 1 token")
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
    """Check that every row fits the context, unless `max_length` permits truncation.

    Args:
        lengths: Tokens of each row before truncation.
        source: File or Hub name of the rows, for errors.
        max_length: The user's limit, to which rows are truncated.
        context: The model's context length, from `context_length`.
        setting: Name of the limit, for errors.
        first_row: Row number of the first length.

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
