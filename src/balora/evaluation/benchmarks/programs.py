"""HumanEval and MBPP: written functions, judged by running them."""

from pathlib import Path

from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.evaluation.benchmarks.writing import Benchmark, Writing, keep, where, writer
from balora.evaluation.code import Problem, isolation, load_humaneval, load_mbpp, score_code

FUNCTION = "Complete this Python function:\n\n```python\n{prompt}\n```"
#: Task ids of MBPP's test set (Austin et al. 2021, section 2.1).
MBPP_TEST = range(11, 511)


def humaneval(
    writing: Writing,
    *,
    file: str | None = None,
    max_samples: int | None = None,
    max_new_tokens: int = 512,
    confirm_run_unsafe_code: bool = False,
) -> Benchmark:
    """HumanEval, one greedy completion each: share whose tests pass.

    Args:
        writing: How the model is asked.
        file: The set; `None` for the Hub's.
        max_samples: The first so many problems.
        max_new_tokens: Longest completion.
        confirm_run_unsafe_code: Whoever writes the recipe says that code is to be run that nobody has read.
    """
    source, hub = where("humaneval", file)
    problems = load_humaneval(source, **hub)
    asked = [writing.put(FUNCTION.format(prompt=p.prompt)) if writing.instructed else p.prompt for p in problems]
    return _code("humaneval", problems, asked, writing, max_samples, max_new_tokens, confirm_run_unsafe_code)


def mbpp(
    writing: Writing,
    *,
    file: str | None = None,
    max_samples: int | None = None,
    max_new_tokens: int = 512,
    confirm_run_unsafe_code: bool = False,
) -> Benchmark:
    """The 500 test problems of MBPP: as `humaneval`. Without a template, the paper's own prompt is continued."""
    source, hub = where("mbpp", file)
    problems = [problem for problem in load_mbpp(source, **hub) if int(problem.name.split("/")[1]) in MBPP_TEST]
    asked = [writing.put(p.prompt.removesuffix("\n[BEGIN]\n")) if writing.instructed else p.prompt for p in problems]
    return _code("mbpp", problems, asked, writing, max_samples, max_new_tokens, confirm_run_unsafe_code)


def _code(
    name: str,
    problems: list[Problem],
    asked: list[str],
    writing: Writing,
    max_samples: int | None,
    max_new_tokens: int,
    confirmed: bool,
) -> Benchmark:
    if not confirmed:
        raise BALoraError(
            "it runs code that a model wrote and nobody has read, confined as far as this machine can; set "
            "confirm_run_unsafe_code: true to have it run"
        )
    isolation()  # raises where a program cannot be confined
    problems, asked = problems[:max_samples], asked[:max_samples]
    write = writer(writing, asked, max_new_tokens)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        written = write(model)
        scores = score_code(problems, [[text] for text in written], confirm_run_unsafe_code=True)
        kept = zip(problems, asked, written, strict=True)
        keep(
            directory / f"{name}.jsonl",
            [{"name": p.name, "prompt": q, "completion": c, **scores["problems"][p.name][0]} for p, q, c in kept],
        )
        return {f"{name}_pass@1": scores["pass@1"]}

    return measure
