"""Check and tokenize conversations with the tokenizer's chat template.

A chat template is a program by the tokenizer's author. Transformers runs it in Jinja's sandbox, but it may fail on
some rows or leave parts of them out, so `check_chats` renders every row before anything is trained.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from balora.data.chat import Chat, ChatError
from balora.data.columns import shortened
from balora.errors import BALoraError

#: Columns of conversations, replaced by `input_ids` and `labels`.
CHAT_COLUMNS = ("messages", "prompt", "completion", "tools", "chat_template_kwargs")


def are_chats(rows: Dataset | IterableDataset) -> bool:
    """Return whether rows in a standard form are conversations, judged by the first."""
    first = next(iter(rows), {})
    return "messages" in first or isinstance(first.get("prompt"), list)


def check_chats(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    assistant_only_loss: bool = True,
) -> None:
    """Check that the tokenizer's chat template renders every row, or the first row of a stream.

    Message keys that the template does not read are named in a warning.

    Args:
        rows: Conversations from `to_causal_lm_rows` or `stream_causal_lm_rows`.
        tokenizer: The model's tokenizer.
        source: File or Hub name of the rows, for errors.
        assistant_only_loss: Whether only the assistant's messages count in the loss.

    Raises:
        BALoraError: If the tokenizer has no template, or naming the first row that is not rendered, loses a message or
            has nothing to learn.
    """
    if tokenizer.chat_template is None:
        raise BALoraError(
            f"{source}: chat rows need a chat template, and the tokenizer of {tokenizer.name_or_path} has none; use "
            "an instruction-tuned model's tokenizer, give a template as chat_template_path, or use prompts and "
            "completions that are strings"
        )
    unread: set[str] = set()
    for number, row in enumerate(islice(rows, None if isinstance(rows, Dataset) else 1), start=1):
        with _named(source, row.get("row", number)):
            chat = Chat(row, tokenizer)
            chat.check()
            chat.trained_text(assistant_only_loss)
        unread |= chat.unread()
    if unread:
        warnings.warn(
            f"balora: {source}: the chat template does not read {', '.join(sorted(unread))}, which is left out",
            stacklevel=2,
        )


def tokenize_chats(
    rows: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    assistant_only_loss: bool = True,
    completion_only_loss: bool = True,
) -> Dataset | IterableDataset:
    """Tokenize conversations into `input_ids` and `labels`; other columns are kept.

    A completion's tokens count in the loss, and of `messages` the assistant's turns with the token that ends each;
    messages of weight 0 do not.

    Args:
        rows: Conversations, checked by `check_chats`.
        tokenizer: The model's tokenizer.
        source: File or Hub name of the rows, for errors.
        assistant_only_loss: Whether only the assistant's messages count, rather than all.
        completion_only_loss: Whether prompts do not count.

    Raises:
        BALoraError: Naming the first row that is not rendered or has nothing to learn; of a stream, while iterating.
    """

    def tokenize(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        with _named(source, row.get("row", index + 1)):
            return Chat(row, tokenizer).tokens(assistant_only_loss, completion_only_loss)

    columns = rows.column_names or list(next(iter(rows)))
    # A stream's `map` describes nothing.
    shown = {} if isinstance(rows, IterableDataset) else {"desc": f"tokenizing {source}"}
    dropped = [name for name in CHAT_COLUMNS if name in columns]
    return rows.map(tokenize, with_indices=True, remove_columns=dropped, **shown)


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token with which the chat template ends a turn; `None` if it ends it with other text."""
    answer = "42"
    messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": answer}]
    try:
        _, found, tail = tokenizer.apply_chat_template(messages, tokenize=False).rpartition(answer)
    except Exception:  # a template may raise anything, such as for a role that it lacks
        return None
    ids = tokenizer(tail.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {tokenizer.unk_token_id}
    if ids and ids[0] in special:
        return ids[0]
    if tail.strip():
        warnings.warn(
            f"balora: the chat template ends a turn with {shortened(tail.strip())}, which is no special token of the "
            "tokenizer; generation cannot stop there",
            stacklevel=2,
        )
    return None


@contextmanager
def _named(source: str, row: int) -> Iterator[None]:
    """Context manager: raise any error of a template, or of what it renders, as one that names the row."""
    try:
        yield
    except ChatError as error:
        raise BALoraError(f"{source}, row {row}: {error}") from error
    except Exception as error:  # a template may raise anything
        said = f"{type(error).__name__}: {shortened(str(error), 200)}"
        raise BALoraError(
            f"{source}, row {row}: the chat template cannot render it ({said}); correct the row, or give another "
            "template as chat_template_path"
        ) from error
