"""Whether two mathematical answers are the same, for answers that a language model wrote.

Simplifying an expression may take forever and any memory, also inside one call into C that no exception interrupts,
and an alarm signal can be had only in the main thread. So the comparison (`balora.evaluation.maths_judge`) is in a
process of its own, which limits itself in time and memory, and whose death is an answer as well: not the same.
"""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from balora.errors import BALoraError

SCRIPT = Path(__file__).with_name("maths_judge.py")
#: An answer of more characters than this is not read at all. MATH-500's longest has 53.
LONGEST = 1000

_lock = threading.Lock()
_process: subprocess.Popen[str] | None = None


def same_answer(given: str, reference: str) -> bool:
    """Whether a given answer has the value of the reference, by math-verify (Kydlíček, 2025) on SymPy.

    Equal are expressions that simplify to the same, `2\\sqrt{3}` and `\\sqrt{12}`; an equation `x = 5` and its right
    side; tuples in their order, sets in any, intervals with their ends; a list without brackets, in any order to
    itself and a set, in the same to a tuple; matrices by entry. A decimal equals a number that agrees in ten places.

    What stands beside a value does not count: `$`, degrees, units in `\\text{}` or in words after a number, and a
    percent sign: 50 % is 50, not 0.5. A numeral's base may be left out. Words, `\\text{east}`, are compared by their
    letters, in either case.

    A pair whose comparison would need more than a few seconds or a gibibyte is not the same, nor is an answer that is
    no mathematics or has more than a thousand characters. Nothing in either string is evaluated as a program. May be
    called from any thread; on POSIX systems only.

    Raises:
        BALoraError: If math-verify is not installed.
    """
    if max(len(given), len(reference)) > LONGEST:
        return False
    with _lock:
        process = _running()
        try:
            process.stdin.write(json.dumps([given, reference]) + "\n")
            process.stdin.flush()
            verdict = process.stdout.readline()
        except BaseException:
            _stop()  # its answer may still come, and would be taken for the next pair's
            raise
        if not verdict:  # it ran into one of its limits
            _stop()
            return False
    return json.loads(verdict)


def _running() -> subprocess.Popen[str]:
    global _process
    if _process is None or _process.poll() is not None:
        if importlib.util.find_spec("math_verify") is None:
            raise BALoraError(
                "judging mathematics needs math-verify, which is not installed; use pip install 'balora[evaluation]'"
            )
        _process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us; the judge ends when its input does
        )
        if _process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{SCRIPT.name} did not start; its error is above")
    return _process


def _stop() -> None:
    global _process
    if _process is not None:
        _process.kill()
        _process.communicate()
        _process = None


def _forget() -> None:
    """In a forked process: the judge is the parent's, who may be waiting for its answer."""
    global _lock, _process
    _lock, _process = threading.Lock(), None


os.register_at_fork(after_in_child=_forget)
