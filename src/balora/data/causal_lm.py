"""Rows for causal language models in TRL's standard forms: prompt and completion, messages, or text.

TRL's `SFTTrainer` tokenizes them later. Wrong rows are found here, before a model is loaded.
"""

from itertools import islice
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from balora.data.columns import check_strings, column_values, quoted, row_error, shortened
from balora.errors import BALoraError

#: The standard columns of each form, as TRL names them.
FORMS = (("prompt", "completion"), ("messages",), ("text",))
ROLES = ("system", "user", "assistant", "tool")


def to_causal_lm_rows(
    dataset: Dataset,
    *,
    source: str,
    prompt_column: str | None = None,
    completion_column: str | None = None,
    messages_column: str | None = None,
    text_column: str | None = None,
    prompt_template: str | None = None,
) -> Dataset:
    """Check a table and reduce it to exactly the columns TRL reads.

    Where no column is named, the form is recognised by the standard names present: `prompt` and `completion`,
    `messages`, or `text`. Prompts and completions are both strings or both lists of messages. A completion that is a
    string gets a leading space if neither it nor the end of its prompt has white space there, so that the two do not
    run into one word.

    Args:
        dataset: The table.
        source: File or Hub name it came from, for errors.
        prompt_column: Column that becomes `prompt`.
        completion_column: Column that becomes `completion`.
        messages_column: Column that becomes `messages`, each a list of `{role, content}`.
        text_column: Column that becomes `text`.
        prompt_template: Text put around each string prompt in place of its `{prompt}`, such as
            `"Question: {prompt}\\nAnswer:"`. Other braces stand for themselves.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`, or `messages`, or `text`.

    Raises:
        BALoraError: If the form is not clear, a column is absent, or a row is wrong.
    """
    named = {
        "prompt": prompt_column,
        "completion": completion_column,
        "messages": messages_column,
        "text": text_column,
    }
    form = choose_form(dataset.column_names, named, source=source)
    columns = {key: column_values(dataset, column, source=source) for key, column in form.items()}
    conversational = is_conversational(form, columns["prompt"][0] if "prompt" in form else None)
    settings = {"conversational": conversational, "prompt_template": prompt_template}
    return Dataset.from_dict(standard_columns(columns, form, source=source, **settings))


def is_conversational(form: dict[str, str], first_prompt: Any) -> bool:
    """Whether the rows are messages, by the first row's prompt where there are prompts."""
    return "messages" in form or isinstance(first_prompt, list)


def standard_columns(
    columns: dict[str, list[Any]],
    form: dict[str, str],
    *,
    source: str,
    conversational: bool,
    prompt_template: str | None,
    first_row: int = 1,
) -> dict[str, list[Any]]:
    """Values of a table's columns, checked, as the standard form has them.

    Args:
        columns: By standard name, one value for each row.
        form: From `choose_form`.
        source: File or Hub name the rows came from, for errors.
        conversational: From `is_conversational`.
        prompt_template: See `to_causal_lm_rows`.
        first_row: Number of the first row.

    Raises:
        BALoraError: Naming the row that is wrong.
    """
    if prompt_template is not None and (conversational or "prompt" not in form):
        found = "lists of messages" if conversational else "plain text"
        raise BALoraError(f"{source}: prompt_template is for prompts that are strings; the rows here are {found}")
    check = _checked_conversations if conversational else _checked_strings
    columns = {key: check(columns[key], source, form[key], first_row) for key in form}
    if "prompt" in form and not conversational:
        prompts = _templated(columns["prompt"], prompt_template)
        columns = {"prompt": prompts, "completion": list(map(_separated, prompts, columns["completion"]))}
    return columns


def choose_form(names: list[str], named: dict[str, str | None], *, source: str) -> dict[str, str]:
    """Standard names of one form, each with the column it is read from.

    Args:
        names: The table's columns.
        named: Columns that the user named, by standard name, `None` where not.
        source: File or Hub name the table came from, for errors.

    Raises:
        BALoraError: If the form is not clear.
    """
    named = {key: column for key, column in named.items() if column is not None}
    if named:
        if tuple(named) not in FORMS:
            raise BALoraError(
                f"{source}: {' and '.join(f'{key}_column' for key in named)} alone make no standard form; name "
                "prompt_column and completion_column, or messages_column, or text_column"
            )
        return named
    found = [form for form in FORMS if set(form) <= set(names)]
    if len(found) != 1:
        problem = "no standard form" if not found else "more than one standard form"
        raise BALoraError(
            f"{source}: {problem} among the columns {quoted(names)}; it takes 'prompt' and 'completion', or "
            "'messages', or 'text': name one with prompt_column and completion_column, messages_column, or text_column"
        )
    return {key: key for key in found[0]}


def _templated(prompts: list[str], template: str | None) -> list[str]:
    if template is None:
        return prompts
    if "{prompt}" not in template:
        raise BALoraError(f"prompt_template: {template!r} has no {{prompt}} for the prompt to go")
    return [template.replace("{prompt}", prompt) for prompt in prompts]


def _separated(prompt: str, completion: str) -> str:
    return completion if prompt[-1].isspace() or completion[0].isspace() else f" {completion}"


def _checked_strings(values: list[Any], source: str, column: str, first_row: int) -> list[str]:
    check_strings(values, source=source, column=column, first_row=first_row)
    return values


def _checked_conversations(values: list[Any], source: str, column: str, first_row: int) -> list[list[dict[str, str]]]:
    """Conversations with nothing but role and content in their messages."""
    for row, messages in enumerate(values, start=first_row):
        if not isinstance(messages, list) or not messages:
            raise row_error(source, row, column, f"expected a list of messages, found {shortened(messages)}")
        for number, message in enumerate(messages, start=1):
            problem = _problem_of_message(message)
            if problem is not None:
                raise row_error(source, row, column, f"message {number}: {problem}")
    return [[{"role": m["role"], "content": m["content"]} for m in messages] for messages in values]


def _problem_of_message(message: Any) -> str | None:
    if not isinstance(message, dict):
        return f"expected an object with role and content, found {shortened(message)}"
    if message.get("role") not in ROLES:
        return f"role {shortened(message.get('role'))} is unknown; use one of {', '.join(ROLES)}"
    if not isinstance(message.get("content"), str):
        return f"content must be text, not {shortened(message.get('content'))}"
    return None


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
