"""Length limits: rows never exceed the model's context, and are truncated only if the user set a length.

The rule is the same for every task. `max_length` permits truncation; without it a row that is too long is an error.
"""

import warnings
from collections.abc import Iterable, Sequence

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.utils.distributed import is_main_process


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


def report_truncation(
    cut: Sequence[int],
    lost: Sequence[int],
    count: int,
    *,
    source: str,
    max_length: int,
    setting: str = "max_length",
    part: str = "completion",
) -> None:
    """Warn of the rows that a limit truncates.

    Args:
        cut: Numbers, from 1, of the rows that lose their end.
        lost: Numbers, from 1, of the rows of which nothing is left to learn.
        count: Number of rows.
        source: File or name of the rows.
        max_length: The limit in tokens.
        setting: Name of the limit.
        part: Name of what lost rows lose.

    Raises:
        BALoraError: If nothing is left to learn in any row.
    """
    if lost and len(lost) == count:
        raise BALoraError(f"{setting}: {max_length} leaves nothing to learn in any row of {source}; use more")
    said = []
    if lost:
        said.append(f"{len(lost)} of {count} rows lose their whole {part} and are left out ({_named(lost)})")
    if cut:
        said.append(f"{len(cut)} of {count} rows lose their end ({_named(cut)})")
    if said and is_main_process():
        warnings.warn(
            f"balora: {source}: with {setting}: {max_length}, {' and '.join(said)}; use more to keep them",
            stacklevel=2,
        )


def _named(rows: Sequence[int], limit: int = 5) -> str:
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:limit]))}{more}"
