"""Requests to an endpoint with OpenAI's chat completions API, with retries.

Uses the standard library: the HTTP client of huggingface_hub changes with its version, and one POST at a time needs
none. Redirects are not followed, since the key would be sent to their target.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from time import sleep
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from balora.errors import BALoraError
from balora.evaluation.mt_bench.replies import Reply, Usage, excerpt, pause_wanted, read_reply

#: Scheme, host or bracketed IPv6 address, port, path; no part that could be a password.
ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~%:/-]*)?")

#: Statuses besides 5xx that are worth a retry: timeout, conflict, too many requests.
TEMPORARY = (408, 409, 429)
LONGEST_BACKOFF_S = 30.0
#: A longer `Retry-After` than this is an error.
LONGEST_PAUSE_S = 300.0
#: Shorter keys are placeholders such as `x` or `EMPTY`, for servers without keys.
SHORTEST_SECRET = 6


@dataclass(frozen=True)
class JudgeEndpoint:
    """The judge's endpoint: address, key, retries and prices.

    Attributes:
        base_url: The address before `/chat/completions`, such as `https://api.openai.com/v1`.
        model: The endpoint's name of the judge.
        api_key_env: The environment variable with the key, which is read for each request and never stored. `None` for
            an endpoint without keys.
        timeout_s: Seconds of silence after which a request counts as lost. A lost request may still be charged.
        max_retries: Retries after 408, 409, 429, 5xx, a lost connection or a reply that is not a chat completion; the
            pauses are 1, 2, 4 … 30 seconds or the endpoint's own `Retry-After`.
        price_per_million_input: Price of a million input tokens, in any currency; `None` if unknown.
        price_per_million_output: Price of a million output tokens.
        options: Further fields of a request. Default: FastChat's settings. Reasoning models need
            `{"max_completion_tokens": 4096}`, since they accept no temperature.

    Raises:
        BALoraError: If the address is malformed, or the key is missing.
    """

    base_url: str
    model: str
    api_key_env: str | None = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    max_retries: int = 5
    price_per_million_input: float | None = None
    price_per_million_output: float | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 2048})

    def __post_init__(self) -> None:
        if ADDRESS.fullmatch(self.base_url) is None:
            # The message does not repeat the address, which may contain a password.
            raise BALoraError("base_url: give an address like https://api.openai.com/v1, without credentials or query")
        self._key()

    def cost(self, usage: Usage) -> float | None:
        """Return the cost of the tokens, `None` if a price is unknown."""
        if self.price_per_million_input is None or self.price_per_million_output is None:
            return None
        read = usage.prompt_tokens * self.price_per_million_input
        return (read + usage.completion_tokens * self.price_per_million_output) / 1e6

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """Return the judge's reply.

        Raises:
            BALoraError: If the endpoint refuses the key, the model or the request, asks for a long pause, or gives no
                reply after the last retry.
        """
        body = json.dumps({"model": self.model, "messages": messages, **self.options}).encode()
        for attempt in range(self.max_retries + 1):
            pause = min(2.0**attempt, LONGEST_BACKOFF_S)
            try:
                status, retry_after, text = self._post(body)
            except (OSError, HTTPException) as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if status == 200:
                    reply = read_reply(text)
                    if reply is not None:
                        return reply
                    problem = f"not a chat completion but {excerpt(text)}"
                elif status in TEMPORARY or status >= 500:
                    problem = f"status {status}, {excerpt(text)}"
                    pause = pause_wanted(retry_after, default=pause)
                else:
                    raise self._refusal(status, excerpt(text))
            if pause > LONGEST_PAUSE_S:
                raise BALoraError(
                    f"{self.base_url}: asks for a pause of {pause:.0f} seconds ({problem}); run again later"
                )
            if attempt < self.max_retries:
                sleep(pause)
        raise BALoraError(
            f"{self.base_url}: no reply from {self.model} in {self.max_retries + 1} tries, the last one: {problem}"
        )

    def _post(self, body: bytes) -> tuple[int, str | None, str]:
        """Send a request; return status, `Retry-After` and text, with the key removed if the endpoint repeats it."""
        key = self._key()
        # Some providers reject Python's own User-Agent.
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "balora"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        request = Request(f"{self.base_url.rstrip('/')}/chat/completions", data=body, headers=headers, method="POST")
        try:
            answer = build_opener(_NoRedirects).open(request, timeout=self.timeout_s)
        except HTTPError as error:
            answer = error
        with answer:
            text = answer.read().decode("utf-8", "replace")
        if key is not None and len(key) >= SHORTEST_SECRET:
            text = text.replace(key, "[key]")
        return answer.status, answer.headers.get("Retry-After"), text

    def _key(self) -> str | None:
        if self.api_key_env is None:
            return None
        # The message does not repeat the value: it may be the key itself, set here by mistake.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise BALoraError(
                "api_key_env: not the name of an environment variable; give a name in capitals, not a key"
            )
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise BALoraError(
                f"{self.api_key_env}: not set; export the judge's key under this name, change api_key_env, "
                "or use api_key_env=None for an endpoint without keys"
            )
        if not (key.isascii() and key.isprintable()):
            raise BALoraError(f"{self.api_key_env}: contains characters that no key has; set it to the key alone")
        return key

    def _refusal(self, status: int, text: str) -> BALoraError:
        if status in (401, 403) and self.api_key_env is None:
            meaning = "it needs a key; set api_key_env to the variable with the key"
        elif status in (401, 403):
            meaning = f"it does not accept the key in {self.api_key_env} for {self.model}"
        elif status == 404:
            meaning = f"there is no model {self.model}, or base_url does not end before /chat/completions"
        elif 300 <= status < 400:
            meaning = "it redirects requests; use the final address as base_url"
        else:
            meaning = "it does not accept the request"
        return BALoraError(f"{self.base_url}: answered {status}, {meaning}: {text}")


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None
