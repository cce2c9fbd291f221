"""The judge's replies: parsed from a chat completion, priced in tokens, and stored in a JSONL file.

Each line of the file has a reply with its question, turn, judge and a digest of the request. It is written as soon as
the reply arrives, so an interrupted run resumes where it stopped.
"""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from balora.errors import BALoraError

#: Expected length of a judge's assessment; reasoning models write more.
EXPECTED_REPLY_TOKENS = 300
#: Typical of English text.
CHARACTERS_PER_TOKEN = 4
#: Upper bound of what a chat template adds to a message.
TEMPLATE_TOKENS = 32


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written."""

    prompt_tokens: int
    completion_tokens: int

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


def expected_usage(messages: list[dict[str, str]]) -> Usage:
    """Estimate the usage of a reply to these messages."""
    characters = sum(len(message["content"]) for message in messages)
    return Usage(characters // CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS, EXPECTED_REPLY_TOKENS)


def largest_usage(messages: list[dict[str, str]], completion_tokens: int) -> Usage:
    """Return an upper bound of the usage of a reply of that length: a token has at least one byte."""
    return Usage(sum(bytes_of(message["content"]) + TEMPLATE_TOKENS for message in messages), completion_tokens)


def bytes_of(text: str) -> int:
    """Return the length of a text in UTF-8; lone surrogates, which a judge's JSON may have, count as one byte."""
    return len(text.encode("utf-8", "replace"))


def completion_limit(options: Mapping[str, Any]) -> int | None:
    """Return the maximum length of a reply in a request's options, `None` if they set no limit."""
    return options.get("max_completion_tokens", options.get("max_tokens"))


@dataclass(frozen=True)
class Reply:
    """A judge's reply.

    Attributes:
        text: The text, verbatim; may be empty.
        usage: Token counts, `None` if the endpoint gives none.
        served_model: The endpoint's name of the model, often with a date.
        finish_reason: `stop`, or `length` if the reply was truncated.
    """

    text: str
    usage: Usage | None
    served_model: str | None
    finish_reason: str | None


def read_reply(text: str) -> Reply | None:
    """Parse a chat completion; return `None` if the text is not a chat completion."""
    try:
        completion = json.loads(text)
        choice = completion["choices"][0]
        content = choice["message"].get("content")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if content is not None and not isinstance(content, str):
        return None
    return Reply(content or "", _usage(completion), completion.get("model"), choice.get("finish_reason"))


def _usage(completion: dict[str, Any]) -> Usage | None:
    usage = completion.get("usage")
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    return Usage(*counts) if counts and all(type(count) is int for count in counts) else None


def pause_wanted(retry_after: str | None, *, default: float) -> float:
    """Return a `Retry-After` header in seconds: a number or a date (RFC 9110, section 10.2.3)."""
    try:
        seconds = float(retry_after or "")
    except ValueError:
        try:
            until = parsedate_to_datetime(retry_after or "")
        except ValueError:
            return default
        seconds = (until.replace(tzinfo=until.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else default


def excerpt(text: str, limit: int = 300) -> str:
    """Return the beginning of a text, on one line, for a message."""
    flat = " ".join(text.split())
    return (flat if len(flat) <= limit else f"{flat[: limit - 1]}…") or "nothing"


#: Question id, turn, judge's model, digest of the request.
Key = tuple[int, int, str, str]
#: The beginning of every line, which distinguishes an interrupted write from a file of another kind.
BEGINNING = b'{"question_id": '


def digest(messages: list[dict[str, str]], options: Mapping[str, Any]) -> str:
    """Return a hash of the request: another answer, prompt or temperature is another request."""
    return hashlib.sha256(json.dumps([messages, dict(options)], sort_keys=True).encode()).hexdigest()


def read_replies(file: Path) -> dict[Key, list[Reply]]:
    """Read the replies of a file in their order; a missing file has none.

    A last line without a newline was being written when the run was interrupted, and is removed from the file.

    Raises:
        BALoraError: If the file has any other content; it is then unchanged.
    """
    content = file.read_bytes() if file.exists() else b""
    *lines, rest = content.split(b"\n")
    replies: defaultdict[Key, list[Reply]] = defaultdict(list)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            usage = row["usage"] and Usage(**row["usage"])
            reply = Reply(row["reply"], usage, row["served_model"], row["finish_reason"])
            replies[row["question_id"], row["turn"], row["judge"], row["digest"]].append(reply)
        except (ValueError, LookupError, TypeError) as error:
            raise _not_ours(file, number) from error
    if rest:
        if not (rest.startswith(BEGINNING) or BEGINNING.startswith(rest)):
            raise _not_ours(file, len(lines) + 1)
        os.truncate(file, len(content) - len(rest))
    return dict(replies)


def append_reply(file: Path, key: Key, reply: Reply) -> None:
    """Append a line in one write and sync it to disk; missing folders are created."""
    question_id, turn, judge, digest = key
    row = {
        "question_id": question_id,
        "turn": turn,
        "judge": judge,
        "digest": digest,
        "reply": reply.text,
        "usage": reply.usage and asdict(reply.usage),
        "served_model": reply.served_model,
        "finish_reason": reply.finish_reason,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as lines:
        lines.write(json.dumps(row).encode() + b"\n")
        os.fsync(lines.fileno())


def _not_ours(file: Path, number: int) -> BALoraError:
    return BALoraError(f"{file}, line {number}: not a judge's reply; use another file, or remove the line")
