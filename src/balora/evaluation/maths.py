"""Problems in mathematics: rows of GSM8K and MATH, the answer in a solution, and the grade of an answer.

Simplifying an expression can take unlimited time and memory, even inside one call into C that no exception interrupts,
and alarm signals work in the main thread only. So two answers are compared in a process of its own
(`balora.evaluation.maths_judge`) with limits on time and memory; if a limit ends it, the answers count as different.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from balora.data.columns import check_strings, column_values, row_error
from balora.errors import BALoraError

#: The opening of a box, an escaped character (which neither opens nor closes), or a brace.
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
HASHES = re.compile(r"####[^\S\n]*(\S[^\n]*)")
ANSWER_IS = re.compile(r"\banswer is\b\s*:?\s*", re.IGNORECASE)
SENTENCE_END = re.compile(r"\.(?=\s|$)|\n")
#: A number with thousands separators, decimals and denominator; a minus after a value is an operator.
NUMBER = re.compile(r"(?:(?<![\w)\]}])-)?\$?(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)(?:/\d+)?")


def extract_answer(text: str) -> str | None:
    """Return the final answer of a generated solution.

    The first of these that occurs: the content of the last closed `\\boxed{…}` (MATH); what follows the last
    `####` on its line (GSM8K); what follows the last "answer is" (MetaMath's "The answer is: …", with or without
    colon) in its sentence; the last number. Time is linear in the length of the text.

    Returns:
        The answer as written, or `None` if none of them occurs.
    """
    return _last_box(text) or _last(HASHES, text) or _stated(text) or _last(NUMBER, text) or None


def grade_maths(completions: Sequence[str], references: Sequence[str]) -> list[bool | None]:
    """Return True per solution if its answer equals the reference, or `None` if it has no answer.

    Args:
        completions: Generated solutions.
        references: The dataset's answers, one per solution.
    """
    answers = map(extract_answer, completions)
    return [
        None if given is None else same_answer(given, reference)
        for given, reference in zip(answers, references, strict=True)
    ]


def _last_box(text: str) -> str | None:
    opened: list[tuple[bool, int]] = []  # is it a box, and the start of its content
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


SCRIPT = Path(__file__).with_name("maths_judge.py")
#: Longer answers, in characters, are never equal. MATH-500's longest has 53.
LONGEST = 1000

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def same_answer(given: str, reference: str) -> bool:
    """Return whether an answer has the value of the reference, by math-verify (Kydlíček, 2025) on SymPy.

    These are equal: expressions that simplify to the same, `2\\sqrt{3}` and `\\sqrt{12}`; an equation `x = 5` and its
    right side; tuples in the same order, sets in any order, intervals with the same ends; a list without brackets in
    any order to another list or a set, in the same order to a tuple; matrices by entry. A decimal equals a number that
    agrees in ten places.

    These are ignored: `$`, degrees, units in `\\text{}` or in words after a number, and percent signs (50 % is 50,
    not 0.5). A numeral's base may be omitted. Words, `\\text{east}`, are compared by their letters, ignoring case.

    The result is False if the comparison needs more than a few seconds or a gibibyte, or if an answer is not
    mathematics or has more than a thousand characters. Neither string is evaluated as a program. May be called from
    any thread; POSIX systems only.

    Raises:
        BALoraError: If math-verify is not installed.
    """
    if max(len(given), len(reference)) > LONGEST:
        return False
    with _lock:
        process = _judge_process()
        try:
            process.stdin.write(json.dumps([given, reference]) + "\n")
            process.stdin.flush()
            verdict = process.stdout.readline()
        except BaseException:
            _stop_judge()  # a late verdict would be taken for the next pair's
            raise
        if not verdict:  # the process exceeded one of its limits
            _stop_judge()
            return False
    return json.loads(verdict)


def _judge_process() -> subprocess.Popen[str]:
    global _process
    if _process is None or _process.poll() is not None:
        if importlib.util.find_spec("math_verify") is None:
            raise BALoraError(
                "comparing mathematics needs math-verify, which is not installed; use pip install 'balora[evaluation]'"
            )
        _process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent only; the judge ends with its input
        )
        if _process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{SCRIPT.name} did not start; its error is above")
    return _process


def _stop_judge() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


def _forget_judge() -> None:
    """Drop the judge in a forked process, since it belongs to the parent, which may be waiting for a verdict."""
    global _lock, _process
    _lock, _process = threading.Lock(), None


os.register_at_fork(after_in_child=_forget_judge)


def gsm8k_rows(dataset: Dataset, *, source: str = "GSM8K") -> Dataset:
    """Convert GSM8K's word problems (Cobbe et al., 2021).

    Args:
        dataset: Columns `question` and `answer`, a solution whose last line is `#### n`.
        source: File or Hub name, for errors.

    Returns:
        The same rows with columns `prompt`, the question; `completion`, the solution; `answer`, the number.

    Raises:
        BALoraError: If a column is missing, or a solution does not end with its number.
    """
    columns = _texts(dataset, {"prompt": "question", "completion": "answer"}, source)
    closings = [solution.rpartition("####")[1:] for solution in columns["completion"]]
    for row, (marker, answer) in enumerate(closings, start=1):
        if not marker or not answer.strip():
            raise row_error(source, row, "answer", "does not end with '####' and the number")
    return Dataset.from_dict({**columns, "answer": [answer.strip() for _, answer in closings]})


def math_rows(dataset: Dataset, *, source: str = "MATH") -> Dataset:
    """Convert MATH's competition problems (Hendrycks et al., 2021), in the format of MATH-500 (Lightman et al., 2023).

    Args:
        dataset: Columns `problem`, `solution`, `answer`, `subject`, `level`.
        source: File or Hub name, for errors.

    Returns:
        The same rows with columns `prompt`, the problem; `completion`, the solution; `answer`, in LaTeX; `subject`;
        `level`, from 1 to 5.

    Raises:
        BALoraError: If a column or a text is missing, or a text is empty.
    """
    names = {"prompt": "problem", "completion": "solution", "answer": "answer", "subject": "subject"}
    columns = _texts(dataset, names, source)
    return Dataset.from_dict({**columns, "level": column_values(dataset, "level", source=source)})


def _texts(dataset: Dataset, names: dict[str, str], source: str) -> dict[str, list[str]]:
    columns = {new: column_values(dataset, old, source=source) for new, old in names.items()}
    for new, old in names.items():
        check_strings(columns[new], source=source, column=old)
    return columns
