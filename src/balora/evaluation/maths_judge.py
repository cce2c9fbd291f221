"""The process in which two mathematical answers are compared: LaTeX read, simplified and held against each other.

Run as a script by `balora.evaluation.maths_equality`, which says why there is a process at all. It imports nothing of
balora, so that it starts in half a second and without PyTorch. A pair comes in as a line of JSON, its verdict goes out
as one. math-verify's own extraction is not used: it would fall back to a part of the answer, and evaluates plain text
as Python. What is used of it never evaluates text: the grammar of latex2sympy2-extended, then `verify`.
"""

import json
import logging
import re
import resource
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # A script's own folder is no place to import from: its modules may be named as others' are.
    sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]
    logging.disable()

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Basic, MatrixBase

#: Bytes of address space; beyond, an allocation fails and the verdict is `False`.
MEMORY_LIMIT = 1 << 30
#: Seconds of processor time per pair, so that a busy machine changes no verdict; beyond, the kernel ends the process.
TIME_LIMIT = 2.0
#: Decimal places that count where an answer is a decimal.
DECIMALS = 10
#: Malformed LaTeX is mended; units are not guessed, since `3h` may be an expression.
READING = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")

TEXT = r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mbox)(?![a-z])\s*"
WHOLLY_TEXT = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}")
IN_WORDS = re.compile(rf"{TEXT}\{{[^{{}}\d]*\}}")
UNIT_IN_TEXT = re.compile(rf"(?<=[^\s^_])\s*{TEXT}\{{[^{{}}]*\}}(?:\^\{{?\d\}}?)?$")
UNIT_IN_WORDS = re.compile(r"([-+]?[\d,./ ]*\d)((?: [a-z]{3,})+)", re.IGNORECASE)
SIZES = {"dozen", "hundred", "thousand", "million", "billion", "trillion"}
PERCENT = re.compile(r"\s*(?:\\?%|\bper ?cent\b)")
DOLLARS_AND_DELIMITERS = re.compile(r"\\?[$€£]|\\[()\[\]](?!\w)|°")
MIXED_NUMBER = re.compile(r"(-?\d+) (\d+)/(\d+)")
SUBSCRIPT = re.compile(r"_\{?(\w+)\}?$")


def plain(answer: str) -> str:
    """An answer without what does not change its value: delimiters, currency, percent signs, degrees, units."""
    answer = DOLLARS_AND_DELIMITERS.sub("", " ".join(answer.replace("−", "-").split()))
    answer = PERCENT.sub("", answer).strip().removesuffix(".")
    if wholly := WHOLLY_TEXT.fullmatch(answer):
        answer = wholly[1].strip()
    answer = UNIT_IN_TEXT.sub("", answer)
    words = UNIT_IN_WORDS.fullmatch(answer)
    if words and not SIZES & set(words[2].lower().split()):
        answer = words[1]
    return MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", answer) if MIXED_NUMBER.fullmatch(answer) else answer


def letters(answer: str) -> str:
    """Letters and digits alone, for answers in words: `\\text{(C)}` is `c`."""
    return re.sub(rf"{TEXT}|[\W_]", "", answer).casefold()


def same(given: str, reference: str) -> bool:
    """Whether two answers have the same value."""
    if IN_WORDS.fullmatch(given.strip()) or IN_WORDS.fullmatch(reference.strip()):
        # As mathematics, letters would be factors, and `seat` would be `east`.
        return letters(given) == letters(reference)
    given, reference = plain(given), plain(reference)
    if given == reference:
        return given != ""
    # The grammar drops the base of a numeral; an answer may leave it out, but not name another.
    bases = {found[1] for found in map(SUBSCRIPT.search, (given, reference)) if found}
    if len(bases) > 1:
        return False
    return verify([parsed(reference)], [parsed(given)], float_rounding=DECIMALS, timeout_seconds=None)


def parsed(answer: str) -> Basic | MatrixBase:
    """The whole answer as an expression of SymPy.

    Raises:
        Exception: If it is no mathematics; the grammar has no narrower class.
    """
    latex = normalize_latex(answer, READING)
    return latex2sympy(latex, is_real=not should_treat_as_complex(latex), normalization_config=None)


def main() -> None:
    """Answer until there is nothing more to read."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    print("ready", flush=True)
    for line in sys.stdin:
        # The signal's default action ends the process, also within one long multiplication in C.
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        try:
            verdict = same(*json.loads(line))
        except Exception:  # whatever SymPy meets in what a model wrote, it is not the answer
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
