"""The questions, and a conversation about one: the second turn is asked with the first and its answer before it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balora.data.columns import check_strings, column_values, row_error, shortened
from balora.data.sources import load_table

#: What answers a chat: messages of `role` and `content`, the last of them the user's, to a text.
Answer = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        question_id: Its number, 81 to 160 in the original.
        category: One of eight, such as `writing` or `math`.
        turns: What the user says first and then.
        references: A right answer to each turn, `None` where the row has none.
    """

    question_id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True)
class Conversation:
    """A question and what a model answered to its two turns."""

    question: Question
    answers: tuple[str, str]


def read_questions(file: str | Path) -> list[Question]:
    """All questions of MT-Bench's `question.jsonl`, or of a file like it, in its order.

    A row has `question_id`, `category`, `turns` (two texts) and perhaps `reference` (two texts, empty where there is
    none).

    Raises:
        BALoraError: If the file is absent or a row is not so, or an id stands twice.
    """
    source = str(file)
    table = load_table(source)
    ids = column_values(table, "question_id", source=source)
    categories = column_values(table, "category", source=source)
    turns = column_values(table, "turns", source=source)
    references = table["reference"][:] if "reference" in table.column_names else [None] * len(table)
    for row, question_id in enumerate(ids, start=1):
        if not isinstance(question_id, int):
            raise row_error(source, row, "question_id", f"expected a whole number, found {shortened(question_id)}")
        if ids.index(question_id) < row - 1:
            raise row_error(source, row, "question_id", f"{question_id} stands in row {ids.index(question_id) + 1}")
    check_strings(categories, source=source, column="category")
    for row, (asked, reference) in enumerate(zip(turns, references, strict=True), start=1):
        _check_pair(asked, source, row, "turns")
        if not all(text and text.strip() for text in asked):
            raise row_error(source, row, "turns", f"a turn is empty in {shortened(asked)}")
        if reference is not None:
            _check_pair(reference, source, row, "reference")
    return [
        Question(question_id, category, tuple(asked), tuple(text or None for text in reference or (None, None)))
        for question_id, category, asked, reference in zip(ids, categories, turns, references, strict=True)
    ]


def answer_question(question: Question, answer: Answer) -> Conversation:
    """Put both turns to whatever answers a chat.

    Args:
        question: The question.
        answer: Called twice, with `[user]` and with `[user, assistant, user]`.
    """
    first, second = ({"role": "user", "content": turn} for turn in question.turns)
    said = answer([first])
    return Conversation(question, (said, answer([first, {"role": "assistant", "content": said}, second])))


def _check_pair(value: Any, source: str, row: int, column: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise row_error(source, row, column, f"expected two texts, one a turn, found {shortened(value)}")
    if any(text is not None and not isinstance(text, str) for text in value):
        raise row_error(source, row, column, f"expected texts, found {shortened(value)}")
