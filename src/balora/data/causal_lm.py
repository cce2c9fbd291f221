"""Rows for causal language models in TRL's standard forms: prompt and completion, messages, or text.

TRL's `SFTTrainer` tokenizes them later. Wrong rows are found here, before a model is loaded.
"""

from typing import Any

from datasets import Dataset

from balora.data.columns import check_strings, column_values, is_blank, quoted
from balora.data.messages import standard_conversations, standard_objects
from balora.data.readers import REFUSALS
from balora.errors import BALoraError

#: The standard columns of each form, as TRL names them.
FORMS = (("prompt", "completion"), ("messages",), ("text",))
#: The columns of other common forms, each with its standard name: ShareGPT's and Alpaca's.
SHAREGPT = {"messages": "conversations"}
ALPACA = {"prompt": "instruction", "completion": "output"}
#: Columns that a conversation may have beside its messages; a chat template reads them.
FURTHER = {"tools": list, "chat_template_kwargs": dict}


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
    `messages`, or `text`; or ShareGPT's `conversations` or Alpaca's `instruction`, `input` and `output`. Prompts and
    completions are both strings or both lists of messages. Conversations keep `tools` and `chat_template_kwargs`, as
    JSON text, and the keys of their messages (`balora.data.messages`). A string
    completion gets a leading space if there is no white space between it and its prompt, so that the two do not run
    into one word.

    Args:
        dataset: The table.
        source: File or Hub name of the table, for errors.
        prompt_column: Column that becomes `prompt`.
        completion_column: Column that becomes `completion`.
        messages_column: Column that becomes `messages`, each a list of `{role, content}` or `{from, value}`.
        text_column: Column that becomes `text`.
        prompt_template: Template in which each string prompt replaces `{prompt}`, such as
            `"Question: {prompt}\\nAnswer:"`. Other braces are kept as they are.

    Returns:
        The same rows in the same order, with columns `prompt` and `completion`, or `messages`, or `text`; and `tools`
        and `chat_template_kwargs` of conversations, if any row has them.

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
    read = form | further_columns(form, dataset.column_names, named)
    columns = {key: column_values(dataset, column, source=source) for key, column in read.items()}
    conversational = is_conversational(form, columns["prompt"][0] if "prompt" in form else None)
    settings = {"conversational": conversational, "prompt_template": prompt_template}
    standard = standard_columns(columns, form, source=source, **settings)
    rows = {key: values for key, values in standard.items() if key not in FURTHER or any(values)}
    try:
        return Dataset.from_dict(rows, on_mixed_types="use_json")
    except REFUSALS as error:
        raise BALoraError(f"{source}: holds a value no table can hold: {error}") from error


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
        columns: One value per row, by standard name; of `further_columns` too.
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
        where = {"source": source, "first_row": first_row}
        systems = columns.get("system")
        standard = {
            key: standard_conversations(columns[key], column=form[key], systems=systems, **where) for key in form
        }
        for key, kind in FURTHER.items():
            if key in columns:
                standard[key] = standard_objects(columns[key], column=key, kind=kind, **where)
        return standard
    if "input" in columns:
        columns = columns | {"prompt": _with_inputs(columns["prompt"], columns["input"])}
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
    forms = [*({key: key for key in form} for form in FORMS), SHAREGPT, ALPACA]
    found = [form for form in forms if set(form.values()) <= set(names)]
    if len(found) > 1:  # other data sets have a column 'output' or 'text' beside a standard form
        found = [form for form in found if form is not ALPACA]
    if len(found) != 1:
        problem = "no standard form" if not found else "more than one standard form"
        raise BALoraError(
            f"{source}: {problem} among the columns {quoted(names)}; a form is 'prompt' and 'completion', or "
            "'messages', or 'text' (or ShareGPT's 'conversations', or Alpaca's 'instruction', 'input' and 'output'): "
            "name one with prompt_column and completion_column, messages_column, or text_column"
        )
    return found[0]


def further_columns(form: dict[str, str], names: list[str] | None, named: dict[str, str | None]) -> dict[str, str]:
    """Return the columns that a table may have beside its form: a conversation's tools, Alpaca's `input` and so on.

    Args:
        form: From `choose_form`.
        names: The table's columns; `None` if its rows may have different ones.
        named: Columns that the user named, by standard name; `None` if not named.
    """
    wanted = [*FURTHER] if "text" not in form else []
    if form == SHAREGPT:
        wanted.append("system")
    if form == ALPACA and not any(named.values()):
        wanted.append("input")
    return {name: name for name in wanted if names is None or name in names}


def _with_inputs(instructions: list[Any], inputs: list[Any]) -> list[Any]:
    """Append Alpaca's inputs, where there are any, to its instructions."""
    return [
        prompt if is_blank(text) or is_blank(prompt) else f"{prompt}\n\n{text}"
        for prompt, text in zip(instructions, inputs, strict=True)
    ]


def _templated(prompts: list[str], template: str) -> list[str]:
    if "{prompt}" not in template:
        raise BALoraError(f"prompt_template: {template!r} has no {{prompt}}; write it where the prompt goes")
    return [template.replace("{prompt}", prompt) for prompt in prompts]


def _separated(prompt: str, completion: str) -> str:
    return completion if prompt[-1].isspace() or completion[0].isspace() else f" {completion}"
