"""Score generated code by running it.

    problems = load_humaneval("HumanEval.jsonl.gz")
    scores = score_code(problems, completions, k=(1, 10), confirm_run_unsafe_code=True)

`problems` has HumanEval and MBPP, and builds a program from a problem and a model's completion; `sandbox` runs
untrusted programs, in an interpreter confined by `jail`; `scoring` has pass@k.
"""

from balora.evaluation.code.problems import Problem, load_humaneval, load_mbpp, program
from balora.evaluation.code.sandbox import Outcome, isolation, run_program
from balora.evaluation.code.scoring import pass_at_k, score_code

__all__ = [
    "Outcome",
    "Problem",
    "isolation",
    "load_humaneval",
    "load_mbpp",
    "pass_at_k",
    "program",
    "run_program",
    "score_code",
]
