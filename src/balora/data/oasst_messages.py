"""One message of OpenAssistant Conversations (Köpf et al., 2023), its fields checked."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from balora.data.columns import shortened
from balora.data.normalization import normalize_text
from balora.errors import BALoraError

ROLES = ("prompter", "assistant")
#: What a message's labels look like, for messages.
LABEL_FORMS = "{quality: {value, count}, …} or {name: […], value: […], count: […]}"
#: Half of a surrogate pair, which JSON can spell and UTF-8 cannot.
SURROGATE = re.compile("[\\ud800-\\udfff]")


@dataclass
class Message:
    """One message with those that reply to it.

    Attributes:
        message_id: Its id.
        parent_id: Id of what it replies to; `None` for a tree's prompt.
        tree_id: Id of its tree, which is that of the tree's prompt, where it is given.
        role: One of `ROLES`.
        text: Normalized (`balora.data.normalization.normalize_text`).
        language: BCP 47 tag such as `en` or `pt-BR`.
        created_date: ISO 8601.
        rank: Among its siblings, 0 the most preferred; that of an only reply is 0 even where none is given.
        quality: Volunteers' mean, from 0 to 1.
        deleted: Whether it was deleted.
        failed_review: Whether its review said no; without a review it did not fail.
        synthetic: Whether a model wrote it.
        place: File or Hub name, row, and message, for errors.
        replies: In the file's order.
    """

    message_id: str
    parent_id: str | None
    tree_id: str | None
    role: str
    text: str
    language: str | None
    created_date: str | None
    rank: int | None
    quality: float | None
    deleted: bool
    failed_review: bool
    synthetic: bool
    place: str
    replies: list["Message"] = field(default_factory=list)

    def error(self, name: str, problem: str) -> BALoraError:
        """What is wrong with one of its fields."""
        return field_error(self.place, name, problem)


def read_message(row: dict[str, Any], place: str, parent: Any) -> Message:
    """A message from what JSON or a table has of it.

    Args:
        row: Its fields by their published names.
        place: File or Hub name, and row, for errors.
        parent: Id of what it replies to, if anything.

    Raises:
        BALoraError: If a field is missing or of another form.
    """
    message_id = _checked(row, "message_id", place, _is_text, "text")
    place = f"{place}, message {message_id!r}"

    def optional(name: str, is_right: Callable[[Any], bool], wanted: str) -> Any:
        return None if row.get(name) is None else _checked(row, name, place, is_right, wanted)

    def flag(name: str) -> bool | None:
        return optional(name, lambda value: isinstance(value, bool), "true or false")

    return Message(
        message_id=message_id,
        parent_id=None if parent is None else _checked({"parent_id": parent}, "parent_id", place, _is_text, "text"),
        tree_id=optional("message_tree_id", _is_text, "text"),
        role=_checked(row, "role", place, lambda value: value in ROLES, " or ".join(map(repr, ROLES))),
        text=normalize_text(_checked(row, "text", place, _is_text, "text")),
        language=optional("lang", _is_text, "text"),
        created_date=optional("created_date", _is_text, "text"),
        rank=optional("rank", lambda value: type(value) is int and 0 <= value < 2**31, "a whole number from 0"),
        quality=_quality(row.get("labels"), place),
        deleted=flag("deleted") is True,
        failed_review=flag("review_result") is False,
        synthetic=flag("synthetic") is True,
        place=place,
    )


def _quality(labels: Any, place: str) -> float | None:
    """The label's value; the Hub has lists of names and values where the files have objects by name."""
    if labels is None:
        return None
    if isinstance(labels, dict) and isinstance(labels.get("name"), list):
        values = labels.get("value")
        if not isinstance(values, list) or len(values) != len(labels["name"]):
            raise field_error(place, "labels", f"expected {LABEL_FORMS}, found {shortened(labels)}")
        value = next((v for name, v in zip(labels["name"], values, strict=True) if name == "quality"), None)
    elif isinstance(labels, dict) and isinstance(labels.get("quality"), dict | None):
        value = (labels.get("quality") or {}).get("value")
    else:
        raise field_error(place, "labels", f"expected {LABEL_FORMS}, found {shortened(labels)}")
    if value is not None and not (type(value) in (int, float) and 0 <= value <= 1):
        raise field_error(place, "labels", f"quality is from 0 to 1, not {shortened(value)}")
    return value


def _checked(row: dict[str, Any], name: str, place: str, is_right: Callable[[Any], bool], wanted: str) -> Any:
    value = row.get(name)
    if value is None:
        raise field_error(place, name, "is missing")
    if not is_right(value):
        raise field_error(place, name, f"expected {wanted}, found {shortened(value)}")
    return value


def _is_text(value: Any) -> bool:
    """Whether a value is a string of whole characters; JSON can also spell half of a surrogate pair."""
    return isinstance(value, str) and SURROGATE.search(value) is None


def field_error(place: str, name: str, problem: str) -> BALoraError:
    """What is wrong with a field of what stands at a place."""
    return BALoraError(f"{place}, field {name!r}: {problem}")
