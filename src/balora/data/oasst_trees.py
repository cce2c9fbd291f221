"""OpenAssistant Conversations (Köpf et al., 2023) as trees of messages, from any form in which they are published.

Those are the Hub's `OpenAssistant/oasst1`, a table of messages, and the export files: `….messages.jsonl.gz` with the
same messages, and `….trees.jsonl.gz` with one tree a line, replies within what they reply to.
"""

from collections.abc import Iterator
from typing import Any

from balora.data.columns import shortened
from balora.data.oasst_messages import Message, field_error, read_message
from balora.data.sources import load_table, stream_table
from balora.errors import BALoraError


def load_oasst_trees(source: str, *, split: str | None = None) -> list[Message]:
    """Read every message, check it, and hang it under what it replies to.

    Args:
        source: Path of an export file, `.jsonl` or `.jsonl.gz`, of trees or of messages; another file of messages in
            the Hub's columns; or the dataset's name on the Hub.
        split: Split of the Hub dataset.

    Returns:
        The trees' prompts, in the file's order.

    Raises:
        BALoraError: If the file cannot be read, a field is missing or of another form, an id occurs twice, a parent
            is absent or a message its own ancestor, or prompter and assistant do not take turns.
    """
    # Line by line, as a table would give every message of a tree the fields of all others.
    by_line = source.lower().endswith((".jsonl", ".jsonl.gz"))
    rows = (stream_table if by_line else load_table)(source, split=split)
    messages: dict[str, Message] = {}
    for message in _messages(rows, source):
        if message.message_id in messages:
            raise message.error("message_id", "occurs before")
        messages[message.message_id] = message
    if not messages:
        raise BALoraError(f"{source}: no rows")
    prompts = _hang(messages)
    _check_trees(prompts, messages)
    return prompts


def walk(prompt: Message) -> Iterator[Message]:
    """The messages of a tree, each after what it replies to."""
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
            raise BALoraError(f"{place}: neither a message (field 'message_id') nor a tree ('message_tree_id')")


def _of_tree(tree: dict[str, Any], place: str) -> Iterator[Message]:
    waiting: list[tuple[Any, str | None]] = [(tree.get("prompt"), None)]
    while waiting:
        value, parent = waiting.pop()
        if not isinstance(value, dict):
            name = "prompt" if parent is None else "replies"
            within = place if parent is None else f"{place}, message {parent!r}"
            raise field_error(within, name, f"expected a message, found {shortened(value)}")
        if value.get("parent_id") not in (None, parent):
            problem = f"{shortened(value['parent_id'])} is not the message that it stands under"
            raise field_error(f"{place}, message {shortened(value.get('message_id'))}", "parent_id", problem)
        message = read_message({"message_tree_id": tree["message_tree_id"], **value}, place, parent)
        replies = [] if value.get("replies") is None else value["replies"]
        if not isinstance(replies, list):
            raise message.error("replies", f"expected a list of messages, found {shortened(replies)}")
        yield message
        waiting.extend((reply, message.message_id) for reply in reversed(replies))


def _hang(messages: dict[str, Message]) -> list[Message]:
    """Give every message its replies, and an only reply the rank of the best."""
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
    """Require one prompt above every message, turns taken, and the tree's id that of its prompt."""
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
        while lost.message_id not in above:  # up into the circle that it hangs from
            above.add(lost.message_id)
            lost = messages[lost.parent_id]
        raise lost.error("parent_id", "the message is its own ancestor")
