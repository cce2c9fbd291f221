"""MT-Bench's questions, and a model's answers to their two turns.

A model answers through its own chat template, at FastChat's temperatures: 0.7 for writing and roleplay, 0.1 for STEM
and humanities, greedy for the rest, 1024 new tokens.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data.columns import check_strings, column_values, row_error, shortened
from balora.data.sources import load_table
from balora.errors import BALoraError
from balora.utils.lengths import context_length
from balora.utils.modules import evaluation_mode

#: From chat messages with `role` and `content`, ending with the user's, to the assistant's text.
Answer = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True)
class Question:
    """A question of two turns.

    Attributes:
        question_id: 81 to 160 in the original.
        category: One of eight, such as `writing` or `math`.
        turns: The user's two messages.
        references: A correct answer per turn, `None` if the file has none.
    """

    question_id: int
    category: str
    turns: tuple[str, str]
    references: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True)
class Conversation:
    """A question and a model's answers to its two turns."""

    question: Question
    answers: tuple[str, str]


def read_questions(file: str | Path) -> list[Question]:
    """Read the questions of MT-Bench's `question.jsonl`, or a file of the same format, in their order.

    A row has `question_id`, `category`, `turns` (two texts) and optionally `reference` (two texts, which may be
    empty).

    Raises:
        BALoraError: If the file does not exist, a row is malformed, or an id occurs twice.
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
            raise row_error(source, row, "question_id", f"{question_id} is also in row {ids.index(question_id) + 1}")
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
    """Ask both turns of a question.

    Args:
        question: The question.
        answer: Called twice, with `[user]` and with `[user, assistant, user]`.
    """
    first, second = ({"role": "user", "content": turn} for turn in question.turns)
    said = answer([first])
    return Conversation(question, (said, answer([first, {"role": "assistant", "content": said}, second])))


def _check_pair(value: Any, source: str, row: int, column: str) -> None:
    if not isinstance(value, list) or len(value) != 2:
        raise row_error(source, row, column, f"expected two texts, one per turn, found {shortened(value)}")
    if any(text is not None and not isinstance(text, str) for text in value):
        raise row_error(source, row, column, f"expected texts, found {shortened(value)}")


#: Category to sampling temperature; 0 is greedy.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
#: Temperature of categories that MT-Bench does not have.
OTHER_TEMPERATURE = 0.7


def answer_questions(
    questions: Iterable[Question],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int = 1024,
    seed: int = 0,
) -> list[Conversation]:
    """Answer every question with a model, at the temperature of its category.

    Args:
        questions: From `read_questions`.
        model: A causal language model, adapted or not; its training mode is unchanged.
        tokenizer: The model's, with a chat template.
        max_new_tokens: Maximum length of an answer.
        seed: Seed of sampling, set for each question, so that an answer does not depend on the other questions. The
            caller's random state is unchanged.

    Raises:
        BALoraError: If the tokenizer has no chat template.
    """
    conversations = []
    for question in questions:
        temperature = TEMPERATURES.get(question.category, OTHER_TEMPERATURE)
        answer = chat_answer(model, tokenizer, temperature=temperature, max_new_tokens=max_new_tokens)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            conversations.append(answer_question(question, answer))
    return conversations


def chat_answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float = 0.0,
    max_new_tokens: int = 1024,
) -> Answer:
    """Return a function from messages to the model's answer.

    Args:
        model: A causal language model; its training mode is unchanged.
        tokenizer: The model's, with a chat template.
        temperature: 0 for greedy decoding. Other generation settings (`top_p` and so on) are the model's own.
        max_new_tokens: Maximum length of an answer; less if the context ends first, and 0 if no context is left.

    Raises:
        BALoraError: If the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise BALoraError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template, which MT-Bench needs; use a chat "
            "model's tokenizer, or set tokenizer.chat_template"
        )
    context = context_length(model.config, tokenizer)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

    @torch.no_grad()
    def answer(messages: list[dict[str, str]]) -> str:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        length = inputs["input_ids"].shape[1]
        room = max_new_tokens if context is None else min(max_new_tokens, context - length)
        if room < 1:
            return ""
        with evaluation_mode(model):
            # Reset the limits of the model's own generation settings, which would apply too.
            written = model.generate(
                **inputs, max_new_tokens=room, max_length=None, min_length=0, num_beams=1, **sampling
            )  # (1, length + T)
        return tokenizer.decode(written[0, length:], skip_special_tokens=True).strip()

    return answer
