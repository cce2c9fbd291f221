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
    """Validate a table and reduce it to exactly the columns that TRL reads.

    If no column is named, the form is recognised by the standard names present: `prompt` and `completion`,
    `messages`, or `text`. Prompts and completions are both strings or both lists of messages. A string
    completion gets a leading space if there is no white space between it and its prompt, so that the two do not run
    into one word.

    Args:
        dataset: The table.
        source: File or Hub name of the table, for errors.
        prompt_column: Column that becomes `prompt`.
        completion_column: Column that becomes `completion`.
        messages_column: Column that becomes `messages`, each a list of `{role, content}`.
        text_column: Column that becomes `text`.
        prompt_template: Template in which each string prompt replaces `{prompt}`, such as
            `"Question: {prompt}\\nAnswer:"`. Other braces are kept as they are.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`, or `messages`, or `text`.

    Raises:
        BALoraError: If the form is ambiguous, a column is missing, or a row is invalid.
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
    """Return whether the rows are lists of messages, judged by the first prompt if there are prompts."""
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
    """Validate the values of a table's columns and convert them to the standard form.

    Args:
        columns: One value per row, by standard name.
        form: From `choose_form`.
        source: File or Hub name of the rows, for errors.
        conversational: From `is_conversational`.
        prompt_template: See `to_causal_lm_rows`.
        first_row: Number of the first row.

    Raises:
        BALoraError: Naming the first invalid row.
    """
    if prompt_template is not None and (conversational or "prompt" not in form):
        found = "lists of messages" if conversational else "plain text"
        raise BALoraError(f"{source}: prompt_template is for prompts that are strings; the rows here are {found}")
    if conversational:
        return {key: _checked_conversations(columns[key], source, form[key], first_row) for key in form}
    for key, column in form.items():
        check_strings(columns[key], source=source, column=column, first_row=first_row)
    if "prompt" not in form:
        return {key: columns[key] for key in form}
    prompts = columns["prompt"] if prompt_template is None else _templated(columns["prompt"], prompt_template)
    return {"prompt": prompts, "completion": list(map(_separated, prompts, columns["completion"]))}


def choose_form(names: list[str], named: dict[str, str | None], *, source: str) -> dict[str, str]:
    """Return the standard names of the table's form, each with the column to read it from.

    Args:
        names: The table's columns.
        named: Columns that the user named, by standard name; `None` if not named.
        source: File or Hub name of the table, for errors.

    Raises:
        BALoraError: If the form is ambiguous.
    """
    named = {key: column for key, column in named.items() if column is not None}
    if named:
        if tuple(named) not in FORMS:
            raise BALoraError(
                f"{source}: {' and '.join(f'{key}_column' for key in named)}: not a standard form; "
                "name prompt_column and completion_column, or messages_column, or text_column"
            )
        return named
    found = [form for form in FORMS if set(form) <= set(names)]
    if len(found) != 1:
        problem = "no standard form" if not found else "more than one standard form"
        raise BALoraError(
            f"{source}: {problem} among the columns {quoted(names)}; a form is 'prompt' and 'completion', or "
            "'messages', or 'text': name one with prompt_column and completion_column, messages_column, or text_column"
        )
    return {key: key for key in found[0]}


def _templated(prompts: list[str], template: str) -> list[str]:
    if "{prompt}" not in template:
        raise BALoraError(f"prompt_template: {template!r} has no {{prompt}}; write it where the prompt goes")
    return [template.replace("{prompt}", prompt) for prompt in prompts]


def _separated(prompt: str, completion: str) -> str:
    return completion if prompt[-1].isspace() or completion[0].isspace() else f" {completion}"


def _checked_conversations(values: list[Any], source: str, column: str, first_row: int) -> list[list[dict[str, str]]]:
    """Validate conversations and reduce their messages to role and content."""
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


def are_chats(rows: Dataset | IterableDataset) -> bool:
    """Return whether rows in a standard form are conversations, judged by the first."""
    first = next(iter(rows), {})
    return is_conversational(first, first.get("prompt"))


def check_chats(rows: Dataset | IterableDataset, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Check that the tokenizer's chat template renders every row, or the first row of a stream.

    A chat template is a program by the tokenizer's author. Transformers runs it in Jinja's sandbox, but it may fail on
    some rows, so it is run once on each before anything is trained.

    Args:
        rows: Conversations from `to_causal_lm_rows` or `stream_causal_lm_rows`.
        tokenizer: The model's tokenizer.
        source: File or Hub name of the rows, for errors.

    Raises:
        BALoraError: If the tokenizer has no template, or naming the first row that is not rendered.
    """
    if tokenizer.chat_template is None:
        raise BALoraError(
            f"{source}: chat rows need a chat template, and the tokenizer of {tokenizer.name_or_path} has none; use "
            "an instruction-tuned model's tokenizer, give a template as chat_template_path, or use prompts and "
            "completions that are strings"
        )
    for number, row in enumerate(islice(rows, None if isinstance(rows, Dataset) else 1), start=1):
        prompt, rest = row.get("prompt") or [], row.get("completion") or row.get("messages")
        try:
            if prompt:
                tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            tokenizer.apply_chat_template([*prompt, *rest], tokenize=False)
        except Exception as error:  # a template may raise anything
            said = f"{type(error).__name__}: {shortened(str(error), 200)}"
            raise BALoraError(
                f"{source}, row {number}: the chat template cannot render it ({said}); correct the row, or give "
                "another template as chat_template_path"
            ) from error
