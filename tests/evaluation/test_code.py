"""HumanEval and MBPP judged by running: references pass, what is wrong fails, tricks fail."""

from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.evaluation.code import load_humaneval, load_mbpp, pass_at_k, program, score_code
from balora.evaluation.code.problems import Problem

#: In the suite every so-many-th reference is run, to keep it short; all 164 and 974 pass, number 123 of MBPP slowly.
HUMANEVAL_STEP, MBPP_STEP = 4, 24

ADD = Problem(
    name="Add/0",
    prompt='from typing import List\n\ndef one():\n    return 1\n\n\ndef add(x: int, y: int):\n    """Add."""\n',
    prefix='from typing import List\n\ndef one():\n    return 1\n\n\ndef add(x: int, y: int):\n    """Add."""\n',
    entry_point="add",
    tests="def check(candidate):\n    assert candidate(2, 3) == 5\n\ncheck(add)\n",
    solution="    return x + y\n",
)
ASKED = Problem("Asked/0", "Write add.", "", "add", "assert add(2, 3) == 5\n", "def add(x, y):\n    return x + y")


@pytest.fixture(scope="module")
def humaneval(data_dir) -> list[Problem]:
    return load_humaneval(str(data_dir / "humaneval" / "HumanEval.jsonl.gz"))


@pytest.fixture(scope="module")
def mbpp(data_dir) -> list[Problem]:
    return load_mbpp(str(data_dir / "mbpp" / "mbpp.jsonl"))


def score(problems, completions, k=(1,), **how):
    return score_code(
        problems, completions, k, **{"timeout_s": 20, "memory_mb": 256, "confirm_run_unsafe_code": True, **how}
    )


# ---------------------------------------------------------------------- pass@k


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(ncK):
    n, c, k = ncK
    draws = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))), abs=1e-15)


def test_pass_at_k_of_many():
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(10_000, 5000, 100) == pytest.approx(1.0)


@pytest.mark.parametrize("ncK", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_impossible_pass_at_k_raises(ncK):
    with pytest.raises(BALoraError, match="needs 0 ≤ c ≤ n and 1 ≤ k ≤ n"):
        pass_at_k(*ncK)


# ---------------------------------------------------------------------- the data


def test_references_of_humaneval_pass_and_empty_bodies_fail(humaneval):
    assert len(humaneval) == 164
    some = humaneval[::HUMANEVAL_STEP]
    scores = score(some, [[problem.solution, "    pass\n"] for problem in some], k=(1, 2))
    assert [[o["passed"] for o in scores["problems"][p.name]] for p in some] == [[True, False]] * len(some)
    assert (scores["pass@1"], scores["pass@2"]) == (0.5, 1.0)
    assert any("seccomp" in line for line in scores["isolation"])


def test_references_of_mbpp_pass_and_empty_bodies_fail(mbpp):
    assert len(mbpp) == 974
    some = mbpp[::MBPP_STEP] + [problem for problem in mbpp if problem.name in ("MBPP/367", "MBPP/927", "MBPP/601")]
    empty = [f"def {problem.entry_point}(*_, **__):\n    pass\n" for problem in some]
    scores = score(some, [[problem.solution, nothing] for problem, nothing in zip(some, empty, strict=True)])
    failed = {name for name, (first, _) in scores["problems"].items() if not first["passed"]}
    passed = {name for name, (_, second) in scores["problems"].items() if second["passed"]}
    assert (failed, passed) == (set(), set())
    assert scores["pass@1"] == 0.5


def test_prompts_are_the_papers_and_every_program_compiles(humaneval, mbpp):
    assert all(problem.prompt == problem.prefix for problem in humaneval)
    assert mbpp[1].prompt == (
        "You are an expert Python programmer, and here is your task: Write a function to find the similar elements "
        "from the given two tuple lists. Your code should pass these tests:\n\n"
        "assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)\n"
        "assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)\n"
        "assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)\n[BEGIN]\n"
    )
    for problem in humaneval + mbpp:
        whole = f"{problem.prefix}{problem.solution}\n"
        for completion in (problem.solution, whole, f"Here:\n```python\n{whole}```\nIt is right."):
            compile(program(problem, completion), problem.name, "exec")


def test_a_missing_column_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"task_id": "1", "prompt": ""}\n')
    with pytest.raises(BALoraError, match=r"x\.jsonl: no column 'entry_point'; it has task_id, prompt"):
        load_humaneval(str(tmp_path / "x.jsonl"))


# ---------------------------------------------------------------------- what models write

WHOLE = "def add(x, y):\n    return x + y * one()\n"
RIGHT = {
    "body": "    return x + y",
    "body and on": "    return x + y\n\n\ndef broken(:\n",
    "body and a comment": "    return x + y\n# the end, isn't it\n'",
    "blank line first": "\n    z = x + y\n\n    return z\n\nprint(",
    "body in a block": "```python\n    return x + y\n```",
    "body to a fence of the prompt": "    return x + y\n```\nIt adds.",
    "whole": WHOLE,
    "whole with an import": f"from typing import List, Tuple\nimport math\n\n{WHOLE}",
    "whole with helper": f"def two():\n    return 2\n\n{WHOLE}",
    "whole as a coroutine's namesake": f"def add_all():\n    pass\n\n{WHOLE}",
    "whole in a block": f"Sure! Here it is:\n\n```python\n{WHOLE}```\n\nIt adds, doesn't it?",
    "whole in a block without language": f"```\n{WHOLE}```",
    "whole in a block cut short": f"```py\n{WHOLE}",
    "whole to a fence of the prompt": f"{WHOLE}```\nIt adds.",
    "second block": f"Install:\n```bash\npip install x\n```\nThen:\n```python\n{WHOLE}```",
    "main is not run": f"{WHOLE}\nif __name__ == '__main__':\n    raise SystemExit(input())\n",
}


@pytest.mark.parametrize("written", RIGHT.values(), ids=RIGHT.keys())
def test_correct_completions_pass_in_every_format(written):
    (outcome,) = score([ADD], [[written]])["problems"]["Add/0"]
    assert outcome["passed"], outcome["output"]


def test_completions_of_prose_prompts_pass_in_every_format():
    code = "def helper(x):\n    return x\n\ndef add(x, y):\n    return helper(x) + y\n"
    written = [
        code,
        f"{code}[DONE]\nfoo bar",
        f"Sure:\n```python\n{code}```\nThere.",
        f"{code}```\nThere.",
        code + "1 +",
    ]
    assert [o["passed"] for o in score([ASKED], [written])["problems"]["Asked/0"]] == [True] * 4 + [False]


def test_wrong_completions_and_tricks_fail():
    wrong = {
        "": "exited",
        "    return x - y": "exited",
        "    return x +": "exited",
        "    raise SystemExit(0)": "exited",
        "    import os; os._exit(0)": "exited",
        "    import sys; sys.exit()": "exited",
        "    exec('import os; os.kill(0, 9)')": "exited",
        "    while True: pass": "timeout",
        "    while True: print('x' * 9999)": "output",
        f"import sys\n{WHOLE}\nsys.exit(0)\n": "exited",
        f"{WHOLE}\nraise SystemExit": "exited",
        "I cannot help with that.": "exited",
    }
    scores = score([ADD], [list(wrong)], timeout_s=2)
    assert [o["ending"] for o in scores["problems"]["Add/0"]] == list(wrong.values())
    assert scores["pass@1"] == 0
    assert "SystemExit" in scores["problems"]["Add/0"][3]["output"]


def test_scores_are_means_over_problems_and_outcomes_stay_in_order():
    right, wrong = "    return x + y", "    return x"
    other = Problem("Add/1", ADD.prompt, ADD.prefix, "add", ADD.tests, ADD.solution)
    slow = "    import time; time.sleep(0.5)\n" + right
    scores = score([ADD, other], [[slow, wrong, right, wrong], [wrong, wrong, right]], k=(1, 2), workers=3)
    assert [o["passed"] for o in scores["problems"]["Add/0"]] == [True, False, True, False]
    assert [o["passed"] for o in scores["problems"]["Add/1"]] == [False, False, True]
    assert scores["pass@1"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert scores["pass@2"] == pytest.approx(((1 - 1 / 6) + (1 - 1 / 3)) / 2)
    assert {"passed", "ending", "seconds", "output"} == scores["problems"]["Add/0"][0].keys()


def test_mistakes_raise_before_anything_runs():
    never = {"confirm_run_unsafe_code": False}
    with pytest.raises(BALoraError, match="2 problems, but 1 lists of completions"):
        score([ADD, ADD], [["x"]], **never)
    with pytest.raises(BALoraError, match=r"Add/0: 1 completions, too few for pass@2"):
        score([ADD], [["x"]], k=(1, 2), **never)
    with pytest.raises(BALoraError, match="confirm_run_unsafe_code=True"):
        score([ADD], [["x"]], **never)
