"""Rows for causal language models, in the standard forms of TRL: prompt and completion, messages, or text.

Tokens come later, from TRL's `SFTTrainer`; what is wrong with a row is found here, before a model is loaded.
"""

from typing import Any

from datasets import Dataset

from balora.data.columns import check_strings, column_list, column_values, row_error, shortened
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
    form = _choose_form(dataset, {key: column for key, column in named.items() if column is not None}, source)
    columns = {key: column_values(dataset, column, source=source) for key, column in form.items()}
    conversational = "messages" in form or ("prompt" in form and isinstance(columns["prompt"][0], list))
    if prompt_template is not None and (conversational or "prompt" not in form):
        found = "lists of messages" if conversational else "plain text"
        raise BALoraError(f"{source}: prompt_template is for prompts that are strings; the rows here are {found}")
    if conversational:
        return Dataset.from_dict(
            {key: _checked_conversations(columns[key], source=source, column=form[key]) for key in form}
        )
    for key, column in form.items():
        check_strings(columns[key], source=source, column=column)
    if "prompt" in form:
        columns["prompt"] = _templated(columns["prompt"], prompt_template)
        columns["completion"] = list(map(_separated, columns["prompt"], columns["completion"]))
    return Dataset.from_dict(columns)


def _choose_form(dataset: Dataset, named: dict[str, str], source: str) -> dict[str, str]:
    """Standard names of one form, each with the column it is read from."""
    if named:
        if tuple(named) not in FORMS:
            raise BALoraError(
                f"{source}: {' and '.join(f'{key}_column' for key in named)} alone make no standard form; name "
                "prompt_column and completion_column, or messages_column, or text_column"
            )
        return named
    found = [form for form in FORMS if set(form) <= set(dataset.column_names)]
    if len(found) != 1:
        problem = "no standard form" if not found else "more than one standard form"
        raise BALoraError(
            f"{source}: {problem} among the columns {column_list(dataset)}; it takes 'prompt' and 'completion', or "
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


def _checked_conversations(values: list[Any], *, source: str, column: str) -> list[list[dict[str, str]]]:
    """Conversations with nothing but role and content in their messages."""
    for row, messages in enumerate(values, start=1):
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
