"""Script that compares two mathematical answers: it parses LaTeX, simplifies, and compares by value.

`balora.evaluation.maths` runs it in a process of its own and explains why. It imports nothing of balora, so it starts
in half a second and without PyTorch. It reads a pair as a line of JSON and writes the verdict as one. math-verify's
own extraction is not used: it falls back to a part of the answer, and evaluates plain text as Python. The parts used
here never evaluate text: the grammar of latex2sympy2-extended, then `verify`.
"""

import json
import logging
import re
import resource
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # Never import from the script's own folder: its modules may shadow installed ones.
    sys.path = [folder for folder in sys.path if folder != str(Path(__file__).resolve().parent)]
    logging.disable()

from latex2sympy2_extended import NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import Basic, MatrixBase

#: Bytes of address space; beyond this an allocation fails and the verdict is `False`.
MEMORY_LIMIT = 1 << 30
#: Seconds of CPU time per pair (wall time would depend on the load); beyond this the kernel ends the process.
TIME_LIMIT = 2.0
#: Decimal places that are compared if an answer is a decimal.
DECIMALS = 10
#: Malformed LaTeX is repaired; units are not guessed, since `3h` may be an expression.
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
    """Remove everything that does not change the value: delimiters, currency, percent signs, degrees, units."""
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
    """Return only letters and digits, for answers in words: `\\text{(C)}` becomes `c`."""
    return re.sub(rf"{TEXT}|[\W_]", "", answer).casefold()


def same(given: str, reference: str) -> bool:
    """Return whether two answers have the same value."""
    if IN_WORDS.fullmatch(given.strip()) or IN_WORDS.fullmatch(reference.strip()):
        # Parsed as mathematics, letters would be factors, and `seat` would equal `east`.
        return letters(given) == letters(reference)
    given, reference = plain(given), plain(reference)
    if given == reference:
        return given != ""
    # The grammar ignores the base of a numeral; an answer may omit it, but not name another one.
    bases = {found[1] for found in map(SUBSCRIPT.search, (given, reference)) if found}
    if len(bases) > 1:
        return False
    return verify([parsed(reference)], [parsed(given)], float_rounding=DECIMALS, timeout_seconds=None)


def parsed(answer: str) -> Basic | MatrixBase:
    """Parse the whole answer as a SymPy expression.

    Raises:
        Exception: If it is not mathematics; the grammar has no narrower class.
    """
    latex = normalize_latex(answer, READING)
    return latex2sympy(latex, is_real=not should_treat_as_complex(latex), normalization_config=None)


def main() -> None:
    """Compare pairs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    print("ready", flush=True)
    for line in sys.stdin:
        # The signal's default action ends the process, even during one long multiplication in C.
        signal.setitimer(signal.ITIMER_PROF, TIME_LIMIT)
        try:
            verdict = same(*json.loads(line))
        except Exception:  # SymPy can raise anything on text that a model wrote; such text is not the answer
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
