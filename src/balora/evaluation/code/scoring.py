"""pass@k: how often one of k completions passes the tests."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.code.problems import Problem, program
from balora.evaluation.code.sandbox import isolation, run_program

#: How much of a program's output is kept: its end, where the traceback is.
OUTPUT_KEPT = 500


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k completions is right, drawn from n without replacement of which c are right.

    Unbiased for the chance that one of k fresh ones is (Chen et al. 2021, equation 1).

    Raises:
        BALoraError: Unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise BALoraError(f"pass@{k} of {n} completions, {c} of them right: needs 0 ≤ c ≤ n and 1 ≤ k ≤ n")
    return 1 - comb(n - c, k) / comb(n, k)


def score_code(
    problems: Sequence[Problem],
    completions: Sequence[Sequence[str]],
    k: Sequence[int] = (1,),
    *,
    workers: int | None = None,
    timeout_s: float = 10.0,
    memory_mb: int = 1024,
    confirm_run_unsafe_code: bool = False,
) -> dict[str, Any]:
    """Run every completion against its problem's tests.

    A completion passes if its program reaches its end: an exit beforehand, of whatever status, is no pass. Program and
    tests share an interpreter, as in the benchmarks' own harnesses, so code written to deceive its judge can; what
    a model writes to solve the problem does not.

    Args:
        problems: From `load_humaneval` or `load_mbpp`.
        completions: For each problem what the model wrote after its prompt; as many as you like, each list of its own
            length.
        k: How many tries; none more than a problem has completions.
        workers: Programs run at a time; as many as there are cores by default.
        timeout_s: See `run_program`.
        memory_mb: See `run_program`.
        confirm_run_unsafe_code: See `run_program`.

    Returns:
        `pass@k` for each k, the mean over problems; `isolation`, what held (see `isolation`); `problems`, by name a
        list with, for each completion, `passed`, `ending`, `seconds`, and the end of its `output`.

    Raises:
        BALoraError: If the lengths do not fit, before anything is run, and as in `run_program`.
    """
    if len(problems) != len(completions):
        raise BALoraError(f"{len(problems)} problems, but completions for {len(completions)}; give one list for each")
    for problem, written in zip(problems, completions, strict=True):
        if len(written) < max(k):
            raise BALoraError(f"{problem.name}: {len(written)} completions, too few for pass@{max(k)}")

    def judge(pair: tuple[Problem, str]) -> dict[str, Any]:
        outcome = run_program(
            program(*pair),
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            confirm_run_unsafe_code=confirm_run_unsafe_code,
        )
        return {
            "passed": outcome.finished,
            "ending": outcome.ending,
            "seconds": outcome.seconds,
            "output": outcome.output[-OUTPUT_KEPT:],
        }

    held = isolation()
    pairs = [(problem, text) for problem, written in zip(problems, completions, strict=True) for text in written]
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        outcomes = pool.map(judge, pairs)
        judged = {
            problem.name: [next(outcomes) for _ in written]
            for problem, written in zip(problems, completions, strict=True)
        }
    passed = [(len(written), sum(outcome["passed"] for outcome in written)) for written in judged.values()]
    scores = {f"pass@{tries}": sum(pass_at_k(n, c, tries) for n, c in passed) / len(passed) for tries in k}
    return {**scores, "isolation": held, "problems": judged}
