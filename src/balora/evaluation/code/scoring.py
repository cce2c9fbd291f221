"""pass@k: the probability that one of k completions passes the tests."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import comb
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.code.problems import Problem, program
from balora.evaluation.code.sandbox import isolation, run_program

#: Characters of a program's output that are kept, from its end, where the traceback is.
OUTPUT_KEPT = 500


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that one of k completions, drawn without replacement from n with c right, is right.

    An unbiased estimate of the probability for k new completions (Chen et al. 2021, equation 1).

    Raises:
        BALoraError: If not 0 ≤ c ≤ n and 1 ≤ k ≤ n.
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

    A completion passes if its program reaches its end; an earlier exit with any status fails. Program and tests share
    an interpreter, as in the benchmarks' own harnesses, so code written to cheat can pass; a model's attempt at a
    solution does not cheat.

    Args:
        problems: From `load_humaneval` or `load_mbpp`.
        completions: For each problem a list of the model's completions, of any length.
        k: Values of k, each at most the number of completions of every problem.
        workers: Number of programs at a time; default: the number of cores.
        timeout_s: See `run_program`.
        memory_mb: See `run_program`.
        confirm_run_unsafe_code: See `run_program`.

    Returns:
        `pass@k` for each k, the mean over problems; `isolation`, as from `isolation`; `problems`, name to a list with
        `passed`, `ending`, `seconds` and the end of `output` for each completion.

    Raises:
        BALoraError: If lengths do not match, before anything is run, or from `run_program`.
    """
    if len(problems) != len(completions):
        raise BALoraError(
            f"{len(problems)} problems, but {len(completions)} lists of completions; give one per problem"
        )
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
