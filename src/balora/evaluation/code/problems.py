"""HumanEval and MBPP: the problems, and the program that tests a completion."""

import ast
import re
from dataclasses import dataclass

from balora.data import load_table
from balora.errors import BALoraError

#: End of a function body; a model often continues with other code (Chen et al. 2021, section 2.2).
STOP = re.compile(r"\n(?:class|def|#|if|print)")

_FENCE = re.compile(r"^```[^\n]*\n?", re.MULTILINE)
_DEFINITION = re.compile(r"^(?:async )?(?:def|class) \w", re.MULTILINE)


@dataclass(frozen=True)
class Problem:
    """One function to write.

    Attributes:
        name: `HumanEval/0`, `MBPP/1` and so on, as in the data.
        prompt: The text for the model to continue.
        prefix: Code before the completion: HumanEval's prompt; empty in MBPP, whose prompt is prose.
        entry_point: Name of the function.
        tests: Code that raises unless the function is right.
        solution: The dataset's reference completion.
    """

    name: str
    prompt: str
    prefix: str
    entry_point: str
    tests: str
    solution: str


def load_humaneval(source: str, **hub: str) -> list[Problem]:
    """Load the 164 problems of Chen et al. (2021), "Evaluating Large Language Models Trained on Code".

    Args:
        source: `HumanEval.jsonl.gz`, or a name for `load_table`.
        hub: `load_table`'s `split` and `name`, for a name on the Hub.

    Raises:
        BALoraError: If a column is missing, or from `load_table`.
    """
    return [
        Problem(
            name=row["task_id"],
            prompt=row["prompt"],
            prefix=row["prompt"],
            entry_point=row["entry_point"],
            tests=f"{row['test']}\ncheck({row['entry_point']})\n",
            solution=row["canonical_solution"],
        )
        for row in _rows(source, hub, ["task_id", "prompt", "entry_point", "test", "canonical_solution"])
    ]


def load_mbpp(source: str, **hub: str) -> list[Problem]:
    """Load the 974 problems of Austin et al. (2021), "Program Synthesis with Large Language Models".

    Task ids 1 to 10 are for few-shot prompts, 11 to 510 the test set, 511 to 600 for validation, the rest for
    training. The prompt is the paper's, without examples: the text, the three tests, then `[BEGIN]`. Every reference
    solution passes, number 123 after 4 s of CPU time.

    Args:
        source: `mbpp.jsonl`, or a name for `load_table`.
        hub: `load_table`'s `split` and `name`, for a name on the Hub.

    Raises:
        BALoraError: If a column is missing, or from `load_table`.
    """
    problems = []
    for row in _rows(source, hub, ["task_id", "text", "code", "test_setup_code", "test_list"]):
        tests = "\n".join(row["test_list"])
        asked = f"{row['text']} Your code should pass these tests:\n\n{tests}"
        problems.append(
            Problem(
                name=f"MBPP/{row['task_id']}",
                prompt=f"You are an expert Python programmer, and here is your task: {asked}\n[BEGIN]\n",
                prefix="",
                entry_point=_tested(row["code"], tests),
                tests=f"{row['test_setup_code']}\n{tests}\n",  # the setup uses what the solution defines
                solution=row["code"],
            )
        )
    return problems


def program(problem: Problem, completion: str) -> str:
    """Return the program that tests a completion; it reaches its end if and only if the tests pass.

    Args:
        problem: From `load_humaneval` or `load_mbpp`.
        completion: The model's text after the prompt: the function's body, the whole function, or prose with either in
            a ``` block; the first block with a definition is used. A body ends at `STOP`.
    """
    code = _code(problem, completion)
    if not problem.prefix:
        return f"{code}\n{problem.tests}"
    if _defines(problem, code):
        # Keep the prompt, whose imports and helpers may be used. Its function, only a docstring so far, is redefined.
        return f"{problem.prefix}\n{code}\n{problem.tests}"
    return f"{problem.prefix}{STOP.split(code, maxsplit=1)[0]}\n{problem.tests}"


def _code(problem: Problem, completion: str) -> str:
    """Return the code in a completion."""
    text = completion.split("[DONE]")[0] if not problem.prefix else completion
    outside, *rest = _FENCE.split(text)
    body = problem.prefix and outside.lstrip("\n").startswith((" ", "\t"))
    # The prompt may have opened the block; then the first fence closes it.
    if not rest or body or _defines(problem, outside):
        return outside
    blocks = rest[::2]
    return next((block for block in blocks if _DEFINITION.search(block)), blocks[0])


def _defines(problem: Problem, code: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(problem.entry_point)}\b", code, re.MULTILINE) is not None


def _tested(solution: str, tests: str) -> str:
    """Return the last function of a solution that its tests name; those before it are helpers."""
    names = [node.name for node in ast.parse(solution).body if isinstance(node, ast.FunctionDef)]
    return [name for name in names if re.search(rf"\b{name}\b", tests)][-1]


def _rows(source: str, hub: dict[str, str], columns: list[str]) -> list[dict]:
    table = load_table(source, **hub)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise BALoraError(f"{source}: no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return table.to_list()
