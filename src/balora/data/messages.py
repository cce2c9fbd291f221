"""Validate conversations and convert their common forms to one: lists of `{role, content, …}`.

The forms are OpenAI's (tool calls, `content` that is null or a list of parts, `weight`), Transformers' and ShareGPT's
(`{from, value}`). A message keeps its other keys, since a chat template may read them.
"""

import json
from typing import Any

from balora.data.columns import is_blank, row_error, shortened

ROLES = ("system", "developer", "user", "assistant", "tool")
#: Roles of ShareGPT's conversations.
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "observation": "tool"}


def standard_conversations(
    values: list[Any], *, source: str, column: str, systems: list[Any] | None = None, first_row: int = 1
) -> list[list[dict[str, Any]]]:
    """Validate conversations and convert them to lists of messages.

    A weight of 1, an empty list and a null say nothing and are left out, except that a null beside tool calls becomes
    an empty `content`. Tool calls' arguments that are JSON text become objects, as chat templates expect.

    Args:
        values: One conversation per row.
        source: File or Hub name of the rows, for errors.
        column: The column's name, for errors.
        systems: ShareGPT's system prompt of each row, blank without one.
        first_row: Number of the first row.

    Raises:
        BALoraError: Naming the first invalid row and message.
    """
    conversations = []
    for row, messages in enumerate(values, start=first_row):
        if not isinstance(messages, list) or not messages:
            raise row_error(source, row, column, f"expected a list of messages, found {shortened(messages)}")
        system = None if systems is None else systems[row - first_row]
        if not is_blank(system):
            messages = [{"role": "system", "content": system}, *messages]
        standard = []
        for number, message in enumerate(messages, start=1):
            try:
                standard.append(_standard_message(message))
            except ValueError as error:
                raise row_error(source, row, column, f"message {number}: {error}") from error
        conversations.append(standard)
    return conversations


def standard_objects(values: list[Any], *, source: str, column: str, kind: type, first_row: int = 1) -> list[str]:
    """Return each row's tools (`kind` list) or template arguments (`kind` dict) as JSON text, empty without any.

    Raises:
        BALoraError: Naming the first row with another value.
    """
    texts = []
    for row, value in enumerate(values, start=first_row):
        try:
            found = json.loads(value) if isinstance(value, str) and value.strip() else value or None
        except (ValueError, RecursionError):
            found = value
        if found is not None and not isinstance(found, kind):
            wanted = "a list of tools" if kind is list else "an object of arguments"
            raise row_error(source, row, column, f"expected {wanted}, found {shortened(value)}")
        texts.append(json.dumps(_without_nulls(found)) if found else "")
    return texts


def _standard_message(message: Any) -> dict[str, Any]:
    """Convert one message; raise `ValueError` with what is wrong with it."""
    if not isinstance(message, dict):
        raise ValueError(f"expected an object with role and content, found {shortened(message)}")
    message = {key: _without_nulls(value) for key, value in message.items() if value is not None}
    if "from" in message and "role" not in message:
        role = message.pop("from")
        message = {"role": SHAREGPT_ROLES.get(role, role) if isinstance(role, str) else role, **message}
        if "value" in message:
            message["content"] = message.pop("value")
    role = message.pop("role", None)
    if role not in ROLES:
        raise ValueError(f"role {shortened(role)} is unknown; use one of {', '.join(ROLES)}")
    content = _text(message.pop("content", None), has_calls=bool(message.get("tool_calls")))
    calls = message.pop("tool_calls", None) or None
    weight = message.pop("weight", 1)
    if weight not in (0, 1):
        raise ValueError(f"weight must be 0 or 1, not {shortened(weight)}")
    standard = {"role": role, "content": content, **message}
    if calls is not None:
        standard["tool_calls"] = _standard_calls(calls)
    if not weight:
        standard["weight"] = 0
    return standard


def _text(content: Any, *, has_calls: bool) -> str:
    """Return a message's content as text; parts of text are joined."""
    if content is None and has_calls:
        return ""
    if isinstance(content, list) and content:
        for part in content:
            if isinstance(part, dict) and part.get("type", "text") != "text":
                raise ValueError(f"content has a part of type {shortened(part['type'])}; only text can be trained on")
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(parts)
    if not isinstance(content, str):
        raise ValueError(f"content must be text, not {shortened(content)}")
    return content


def _standard_calls(calls: Any) -> list[dict[str, Any]]:
    """Validate tool calls, and parse their arguments if these are JSON text, as OpenAI writes them."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise ValueError(f"tool_calls must be a list of objects, not {shortened(calls)}")
    return [_with_parsed_arguments(call) for call in calls]


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_parsed_arguments(call["function"])}
    if isinstance(call.get("arguments"), str):
        try:
            arguments = json.loads(call["arguments"] or "{}", parse_int=_int64)
            json.dumps(arguments, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return call  # plain text, or a value that no table can hold
        if isinstance(arguments, dict):
            return {**call, "arguments": arguments}
    return call


def _int64(text: str) -> int:
    """Parse an integer that a table can hold."""
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number


def _without_nulls(value: Any) -> Any:
    """Leave out null entries, with which tables fill the keys that other rows have."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
