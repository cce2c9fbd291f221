"""Generated code, judged by running it.

    problems = load_humaneval("HumanEval.jsonl.gz")
    scores = score_code(problems, completions, k=(1, 10), confirm_run_unsafe_code=True)

`sandbox` runs a program that nobody has read, in the interpreter that `jail` confines; `problems` makes such programs
of HumanEval, MBPP and what a model wrote; `scoring` has pass@k.
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
