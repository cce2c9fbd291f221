"""One request to an endpoint that speaks OpenAI's chat completions, until it is answered or clearly will not be.

By the standard library: of HTTP clients, those that huggingface_hub brings change with its version (httpx, httpx2),
and one POST at a time needs none. Redirects are not followed, since the key would go where they lead.
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
from balora.evaluation.mt_bench.completion import Reply, excerpt, pause_wanted, read_reply
from balora.evaluation.mt_bench.cost import Usage

#: Scheme, host or bracketed IPv6 address, port, path; nothing that could be a password.
ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(/[A-Za-z0-9._~%:/-]*)?")

#: Statuses besides 5xx that another try may mend: the server's timeout, its conflict, too many requests.
PASSING = (408, 409, 429)
LONGEST_BACKOFF_S = 30.0
#: An endpoint that asks for a longer pause than this is better asked another time.
LONGEST_PAUSE_S = 300.0
#: A shorter key protects nothing: servers that take none are given words such as `x` or `EMPTY`.
SHORTEST_SECRET = 6


@dataclass(frozen=True)
class JudgeEndpoint:
    """Where the judge is, and what it takes.

    Attributes:
        base_url: The address before `/chat/completions`, such as `https://api.openai.com/v1`.
        model: The judge, by the endpoint's name for it.
        api_key_env: The environment variable that holds the key; it is read for each request and kept nowhere. `None`
            for an endpoint without keys.
        timeout_s: Seconds of silence before a request counts as lost. A lost one may be charged for unseen.
        max_retries: Further tries after 408, 409, 429, 5xx, a lost connection or a reply that is no chat completion,
            after 1, 2, 4 … 30 seconds or the endpoint's own `Retry-After`.
        price_per_million_input: Price of a million tokens read, in any currency; `None` where unknown.
        price_per_million_output: The same of tokens written.
        options: What else a request holds. FastChat's settings by default; judges that think want
            `{"max_completion_tokens": 4096}`, since they take no temperature.

    Raises:
        BALoraError: If the address is none, or there is no key.
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
            # Not repeated: it may hold a password.
            raise BALoraError("base_url: give an address like https://api.openai.com/v1, without credentials or query")
        self._key()

    def cost(self, usage: Usage) -> float | None:
        """What so many tokens cost, `None` where a price is unknown."""
        if self.price_per_million_input is None or self.price_per_million_output is None:
            return None
        read = usage.prompt_tokens * self.price_per_million_input
        return (read + usage.completion_tokens * self.price_per_million_output) / 1e6

    def ask(self, messages: list[dict[str, str]]) -> Reply:
        """The judge's reply.

        Raises:
            BALoraError: If the endpoint refuses (the key, the model, the request), wants a long pause, or has given no
                reply after the last try.
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
                    problem = f"no chat completion but {excerpt(text)}"
                elif status in PASSING or status >= 500:
                    problem = f"status {status}, {excerpt(text)}"
                    pause = pause_wanted(retry_after, default=pause)
                else:
                    raise self._refusal(status, excerpt(text))
            if pause > LONGEST_PAUSE_S:
                raise BALoraError(f"{self.base_url}: wants a pause of {pause:.0f} seconds ({problem}); go on then")
            if attempt < self.max_retries:
                sleep(pause)
        raise BALoraError(
            f"{self.base_url}: no reply from {self.model} in {self.max_retries + 1} tries, the last one: {problem}"
        )

    def _post(self, body: bytes) -> tuple[int, str | None, str]:
        """Status, `Retry-After` and text of the answer, the key taken out should the endpoint send it back."""
        key = self._key()
        # Some providers turn Python's own User-Agent away.
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
        # The names of others are not repeated: it could be the key itself that stands there by mistake.
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.api_key_env):
            raise BALoraError("api_key_env: give the name of an environment variable, in capitals, and not a key")
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise BALoraError(
                f"{self.api_key_env}: not set; export the judge's key under this name, name another in api_key_env, "
                "or give api_key_env=None for an endpoint without keys"
            )
        if not (key.isascii() and key.isprintable()):
            raise BALoraError(f"{self.api_key_env}: holds characters that no key has; set it to the key alone")
        return key

    def _refusal(self, status: int, text: str) -> BALoraError:
        if status in (401, 403) and self.api_key_env is None:
            meaning = "it wants a key; name the variable that holds one in api_key_env"
        elif status in (401, 403):
            meaning = f"it does not accept the key in {self.api_key_env} for {self.model}"
        elif status == 404:
            meaning = f"there is no model {self.model}, or base_url does not end before /chat/completions"
        elif 300 <= status < 400:
            meaning = "it sends requests on elsewhere; give the last address as base_url"
        else:
            meaning = "it does not take the request"
        return BALoraError(f"{self.base_url}: answered {status}, {meaning}: {text}")


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, *args: Any) -> None:
        return None
