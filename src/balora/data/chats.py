"""Conversations rendered once before anything is trained: a chat template is a program of whoever wrote the tokenizer.

Transformers runs it in Jinja's sandbox, where it reaches nothing but what it is given. What it does there may still
fail, and differently from row to row.
"""

from itertools import islice

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from balora.data.causal_lm import is_conversational
from balora.data.columns import shortened
from balora.errors import BALoraError


def check_chats(rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """See that the tokenizer's chat template renders every row, of a stream the first.

    Args:
        rows: From `to_causal_lm_rows` or `stream_causal_lm_rows`; others than conversations are passed over.
        tokenizer: The model's.
        source: File or Hub name the rows came from, for errors.

    Raises:
        BALoraError: Naming the first row that it does not.
    """
    first = next(iter(rows), {})
    form = {name: name for name in ("prompt", "messages") if name in first}
    if tokenizer.chat_template is None or not is_conversational(form, first.get("prompt")):
        return
    for number, row in enumerate(islice(rows, None if isinstance(rows, Dataset) else 1), start=1):
        prompt, rest = row.get("prompt") or [], row.get("completion") or row.get("messages")
        try:
            if prompt:
                tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            tokenizer.apply_chat_template([*prompt, *rest], tokenize=False)
        except Exception as error:  # it is a program, and may raise anything
            said = f"{type(error).__name__}: {shortened(str(error), 200)}"
            raise BALoraError(
                f"{source}, row {number}: the chat template does not render it ({said}); mend the row, or give "
                "another template as chat_template_path"
            ) from error
