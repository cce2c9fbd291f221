"""A fake judge endpoint with scripted answers that records its requests; used by `tests/evaluation/mt_bench`."""

import json
from collections.abc import Callable
from typing import Any

from balora.evaluation.mt_bench import Conversation, Question

KEY = "sk-a-key-that-nobody-may-see"
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}


def completion(text: str | None, usage: dict[str, int] | None = USAGE) -> tuple[int, str, dict[str, str]]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, json.dumps({"model": "judge-2024", "choices": [choice], "usage": usage}), {}


def status(code: int, text: str = '{"error": {"message": "not so"}}', **headers: str) -> tuple[int, str, dict]:
    return code, text, {name.replace("_", "-"): value for name, value in headers.items()}


class FakeJudge:
    """Server whose `answer(body)` returns status, text and headers, or `None` to close the connection."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answer: Callable[[dict[str, Any]], tuple[int, str, dict[str, str]] | None] = lambda _: completion("[[7]]")

    def in_turn(self, *answers: tuple[int, str, dict[str, str]] | None) -> None:
        rest = iter(answers)
        self.answer = lambda _: next(rest)

    @property
    def prompts(self) -> list[str]:
        return ["".join(message["content"] for message in body["messages"]) for body in self.asked]


def conversation(question_id: int, category: str = "writing", answers: tuple[str, str] = ("one", "two")):
    return Conversation(Question(question_id, category, (f"first of {question_id}", "second")), answers)
