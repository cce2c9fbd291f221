"""What an endpoint sends back: a chat completion, or a wish to be asked later."""

import json
import math
from dataclasses import dataclass
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

from balora.evaluation.mt_bench.cost import Usage


@dataclass(frozen=True)
class Reply:
    """What the judge said.

    Attributes:
        text: Verbatim; empty where it said nothing.
        usage: Tokens, `None` where the endpoint counts none.
        served_model: The model that the endpoint says it was, often with a date.
        finish_reason: Why it stopped: `stop`, or `length` where it was cut.
    """

    text: str
    usage: Usage | None
    served_model: str | None
    finish_reason: str | None


def read_reply(text: str) -> Reply | None:
    """The reply in a chat completion, `None` if it is none."""
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
    """A `Retry-After` in seconds: a number or a date (RFC 9110, section 10.2.3)."""
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
    """The beginning of a text, on one line, for a message."""
    flat = " ".join(text.split())
    return (flat if len(flat) <= limit else f"{flat[: limit - 1]}…") or "nothing"
