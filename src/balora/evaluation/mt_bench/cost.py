"""What judging costs: tokens as the endpoint counts them, and bounds on those it has yet to count."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: What a judge's assessment is expected to take; one that thinks before it writes takes more.
EXPECTED_REPLY_TOKENS = 300
#: English text in the usual vocabularies.
CHARACTERS_PER_TOKEN = 4
#: What a chat template adds to a message, generously.
TEMPLATE_TOKENS = 32


@dataclass(frozen=True)
class Usage:
    """Tokens read and tokens written."""

    prompt_tokens: int
    completion_tokens: int

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


def expected_usage(messages: list[dict[str, str]]) -> Usage:
    """A guess at what an answer to these messages takes."""
    characters = sum(len(message["content"]) for message in messages)
    return Usage(characters // CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS, EXPECTED_REPLY_TOKENS)


def largest_usage(messages: list[dict[str, str]], completion_tokens: int) -> Usage:
    """At most what an answer of so many tokens takes: a token stands for at least one byte."""
    return Usage(sum(bytes_of(message["content"]) + TEMPLATE_TOKENS for message in messages), completion_tokens)


def bytes_of(text: str) -> int:
    """Bytes of a text in UTF-8; a judge's reply may hold lone surrogates, which have none."""
    return len(text.encode("utf-8", "replace"))


def completion_limit(options: Mapping[str, Any]) -> int | None:
    """The most tokens that a request's options let the judge write, `None` where they set no limit."""
    return options.get("max_completion_tokens", options.get("max_tokens"))
