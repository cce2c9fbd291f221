"""Trees of messages from OpenAssistant Conversations (Köpf et al., 2023), in any form in which they are published.

These are the Hub's `OpenAssistant/oasst1`, a table of messages, and the export files: `….messages.jsonl.gz` with the
same messages, and `….trees.jsonl.gz` with one tree a line, replies nested in what they reply to.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from balora.data.columns import shortened
from balora.data.sources import load_table, stream_table
from balora.errors import BALoraError

ROLES = ("prompter", "assistant")
#: The forms of a message's labels, for errors.
LABEL_FORMS = "{quality: {value, count}, …} or {name: […], value: […], count: […]}"
#: Half of a surrogate pair, which JSON can write and UTF-8 cannot.
SURROGATE = re.compile("[\\ud800-\\udfff]")
#: Marks of code blocks.
FENCE = "```"


@dataclass
class Message:
    """A message and the replies to it.

    Attributes:
        message_id: Id of the message.
        parent_id: Id of the message that it replies to; `None` for a tree's prompt.
        tree_id: Id of the tree, which is that of the tree's prompt; `None` if not given.
        role: One of `ROLES`.
        text: Normalized text (`normalize_text`).
        language: BCP 47 tag such as `en` or `pt-BR`.
        created_date: ISO 8601 date.
        rank: Rank among its siblings, 0 the most preferred; 0 for an only reply without a given rank.
        quality: Mean rating by volunteers, from 0 to 1.
        deleted: Whether it was deleted.
        failed_review: Whether a review rejected it.
        synthetic: Whether a model wrote it.
        place: File or Hub name, row, and message, for errors.
        replies: Replies in the file's order.
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
        """Build the error for one field of the message."""
        return field_error(self.place, name, problem)


def read_message(row: dict[str, Any], place: str, parent: Any) -> Message:
    """Validate the fields of a message, without its replies.

    Args:
        row: The fields by their published names.
        place: File or Hub name, and row, for errors.
        parent: Id of the message that it replies to, or `None`.

    Raises:
        BALoraError: If a field is missing or invalid.
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
    """Return the `quality` label; the Hub has lists of names and values, the files an object by name."""
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
    """Return whether a value is a string without half surrogate pairs, which JSON can write."""
    return isinstance(value, str) and SURROGATE.search(value) is None


def field_error(place: str, name: str, problem: str) -> BALoraError:
    """Build the error for a field of the row or message at a place."""
    return BALoraError(f"{place}, field {name!r}: {problem}")


def load_oasst_trees(source: str, *, split: str | None = None) -> list[Message]:
    """Read and validate every message, and build the trees.

    Args:
        source: Path of an export file, `.jsonl` or `.jsonl.gz`, of trees or of messages; another file of messages in
            the Hub's columns; or the dataset's name on the Hub.
        split: Split of the Hub dataset.

    Returns:
        The trees' prompts, in the file's order.

    Raises:
        BALoraError: If the file cannot be read, a field is missing or invalid, an id occurs twice, a parent does not
            exist, a message is its own ancestor, or prompter and assistant do not take turns.
    """
    # Line by line: a table would add the fields of all messages to every message of a tree.
    by_line = source.lower().endswith((".jsonl", ".jsonl.gz"))
    rows = (stream_table if by_line else load_table)(source, split=split)
    messages: dict[str, Message] = {}
    for message in _messages(rows, source):
        if message.message_id in messages:
            raise message.error("message_id", "occurs twice")
        messages[message.message_id] = message
    if not messages:
        raise BALoraError(f"{source}: no rows")
    prompts = _build_trees(messages)
    _check_trees(prompts, messages)
    return prompts


def walk(prompt: Message) -> Iterator[Message]:
    """Yield the messages of a tree, each after the one that it replies to."""
    waiting = [prompt]
    while waiting:
        message = waiting.pop()
        yield message
        waiting.extend(reversed(message.replies))


def _messages(rows: Any, source: str) -> Iterator[Message]:
    for number, row in enumerate(rows, start=1):
        place = f"{source}, row {number}"
        if row.get("message_id") is not None:
            yield read_message(row, place, row.get("parent_id"))
        elif row.get("message_tree_id") is not None:
            yield from _of_tree(row, place)
        else:
            raise BALoraError(f"{place}: neither a message (field 'message_id') nor a tree (field 'message_tree_id')")


def _of_tree(tree: dict[str, Any], place: str) -> Iterator[Message]:
    waiting: list[tuple[Any, str | None]] = [(tree.get("prompt"), None)]
    while waiting:
        value, parent = waiting.pop()
        if not isinstance(value, dict):
            name = "prompt" if parent is None else "replies"
            within = place if parent is None else f"{place}, message {parent!r}"
            raise field_error(within, name, f"expected a message, found {shortened(value)}")
        if value.get("parent_id") not in (None, parent):
            problem = f"{shortened(value['parent_id'])} is not the message that it is nested in"
            raise field_error(f"{place}, message {shortened(value.get('message_id'))}", "parent_id", problem)
        message = read_message({"message_tree_id": tree["message_tree_id"], **value}, place, parent)
        replies = [] if value.get("replies") is None else value["replies"]
        if not isinstance(replies, list):
            raise message.error("replies", f"expected a list of messages, found {shortened(replies)}")
        yield message
        waiting.extend((reply, message.message_id) for reply in reversed(replies))


def _build_trees(messages: dict[str, Message]) -> list[Message]:
    """Add the replies to every message, give only replies rank 0, and return the prompts."""
    prompts = []
    for message in messages.values():
        if message.parent_id is None:
            prompts.append(message)
        elif message.parent_id in messages:
            messages[message.parent_id].replies.append(message)
        else:
            raise message.error("parent_id", f"no message has the id {message.parent_id!r}")
    for message in messages.values():
        if len(message.replies) == 1 and message.replies[0].rank is None:
            message.replies[0].rank = 0
    return prompts


def _check_trees(prompts: list[Message], messages: dict[str, Message]) -> None:
    """Require that every message is below a prompt, roles alternate, and a tree has its prompt's id."""
    reached = set()
    for prompt in prompts:
        if prompt.role != "prompter":
            raise prompt.error("role", "a tree begins with the prompter, not the assistant")
        for message in walk(prompt):
            reached.add(message.message_id)
            if message.tree_id not in (None, prompt.message_id):
                problem = f"{message.tree_id!r} is not the id of its tree's prompt, {prompt.message_id!r}"
                raise message.error("message_tree_id", problem)
            same = next((reply for reply in message.replies if reply.role == message.role), None)
            if same is not None:
                raise same.error("role", f"{same.role!r} replies to {same.role!r}; the two take turns")
    lost = next((message for message in messages.values() if message.message_id not in reached), None)
    if lost is not None:
        above = set()
        while lost.message_id not in above:  # up to a message of the cycle
            above.add(lost.message_id)
            lost = messages[lost.parent_id]
        raise lost.error("parent_id", "the message is its own ancestor")


def normalize_text(text: str) -> str:
    """Normalize Unicode (NFC) and white space. Idempotent.

    - Unicode's canonical composition (NFC): é is one character, not e and an accent. Compatibility characters (ﬁ, ²)
      are kept.
    - Lines end in LF, not in CR LF or CR.
    - White space around the text and at the ends of lines is removed. Two or more empty lines become one, and two or
      more blanks after a line's first word become one space. Indentation is kept.
    - Between triple backticks, where white space belongs to code, all of it is kept.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    parts = text.split(FENCE)
    parts[::2] = map(_without_spare_space, parts[::2])  # every other part is within a fence
    return FENCE.join(parts).strip()


def comparison_key(text: str) -> str:
    """Return a key that is equal for texts that differ only in case, white space and Unicode composition."""
    return " ".join(normalize_text(text).casefold().split())


def _without_spare_space(text: str) -> str:
    # A match must start a run of white space: long runs would take quadratic time otherwise.
    text = re.sub(r"(?<![^\S\n])[^\S\n]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return re.sub(r"(?<=\S)[^\S\n]{2,}", " ", text)
