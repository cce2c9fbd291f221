"""Scores of solutions in mathematics: where a text has its answer, and how many answers are right."""

import re
from collections import defaultdict
from collections.abc import Hashable, Sequence

from balora.evaluation.maths_equality import same_answer

__all__ = ["accuracy_by", "extract_answer", "grade_maths", "same_answer", "score_maths"]

#: A box opens, an escaped character (which opens and closes nothing), a brace.
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
HASHES = re.compile(r"####[^\S\n]*(\S[^\n]*)")
ANSWER_IS = re.compile(r"\banswer is\b\s*:?\s*", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")
#: With thousands separators, decimals, and a denominator; a minus after a value is an operator.
NUMBER = re.compile(r"(?:(?<![\w)\]}])-)?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")


def extract_answer(text: str) -> str | None:
    """The final answer of a generated solution.

    The first of these that the text has: the content of the last closed `\\boxed{…}` (MATH); what follows the last
    `####` on its line (GSM8K); what follows the last "answer is" (MetaMath's "The answer is: …", with or without
    colon) in its sentence; the last number. Time is linear in the length of the text.

    Returns:
        The answer as it was written, or `None` if there is none of them.
    """
    return _last_box(text) or _last(HASHES, text) or _stated(text) or _last(NUMBER, text) or None


def grade_maths(completions: Sequence[str], references: Sequence[str]) -> list[bool | None]:
    """Whether each solution's answer is the reference, or `None` where it has no answer.

    Args:
        completions: Generated solutions.
        references: Answers as a dataset gives them, one per solution.
    """
    answers = map(extract_answer, completions)
    return [
        None if given is None else same_answer(given, reference)
        for given, reference in zip(answers, references, strict=True)
    ]


def score_maths(completions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores of generated solutions, of which there is at least one.

    Args:
        completions: Generated solutions.
        references: Answers as a dataset gives them, one per solution.

    Returns:
        `accuracy`, the share of right answers among all solutions, and `unanswered`, the share without any answer.
    """
    grades = grade_maths(completions, references)
    return {"accuracy": grades.count(True) / len(grades), "unanswered": grades.count(None) / len(grades)}


def accuracy_by(grades: Sequence[bool | None], groups: Sequence[Hashable]) -> dict[Hashable, float]:
    """Accuracy within each group, such as MATH's subjects or levels, in the groups' order.

    Args:
        grades: From `grade_maths`; no answer is not right.
        groups: The group of each, of one type that has an order.
    """
    grouped = defaultdict(list)
    for grade, group in zip(grades, groups, strict=True):
        grouped[group].append(grade is True)
    return {group: sum(grouped[group]) / len(grouped[group]) for group in sorted(grouped)}


def _last_box(text: str) -> str | None:
    opened: list[tuple[bool, int]] = []  # is it a box, and where its content starts
    start, end = -1, -1
    for token in BRACES.finditer(text):
        if token[0] == "}":
            if opened:
                is_box, position = opened.pop()
                if is_box and position > start:
                    start, end = position, token.start()
        elif token[0].endswith("{") and token[0] != "\\{":
            opened.append((token[0] != "{", token.end()))
    return text[start:end].strip() if start >= 0 else None


def _stated(text: str) -> str | None:
    end = None
    for match in ANSWER_IS.finditer(text):
        end = match.end()
    return None if end is None else SENTENCE_END.split(text[end:], maxsplit=1)[0].strip(" *")


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    found = None
    for match in pattern.finditer(text):
        found = match[match.lastindex or 0]
    return found and found.strip()
