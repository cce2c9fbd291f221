"""What a model that writes is judged on: a function for each benchmark, with its settings as keyword arguments.

It is called before anything is trained: it reads the problems, puts them as the training rows were put, and holds them
against the model's context. What it returns takes a model, keeps what that wrote, and returns figures.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.data import expand_path, load_table
from balora.errors import BALoraError
from balora.evaluation.code import Problem, isolation, load_humaneval, load_mbpp, score_code
from balora.evaluation.generation import check_room, generate_completions
from balora.evaluation.harness import check_tasks, evaluate_with_harness
from balora.evaluation.maths import grade_maths
from balora.evaluation.maths_rows import gsm8k_rows, math_rows
from balora.evaluation.mt_bench import JudgeEndpoint, answer_questions, mt_bench_score, read_questions
from balora.evaluation.wikitext import read_pages, split_pages, wikitext_perplexity

#: Takes a model and the folder to keep its texts in; returns figures by name.
Benchmark = Callable[[PreTrainedModel, Path], dict[str, float]]

#: Where the Hub has a benchmark, and which part of it is the test set.
HUB: dict[str, tuple[str, dict[str, str]]] = {
    "gsm8k": ("openai/gsm8k", {"name": "main", "split": "test"}),
    "math": ("HuggingFaceH4/MATH-500", {"split": "test"}),
    "humaneval": ("openai/openai_humaneval", {"split": "test"}),
    "mbpp": ("google-research-datasets/mbpp", {"name": "full", "split": "test"}),
    "wikitext2": ("Salesforce/wikitext", {"name": "wikitext-2-raw-v1", "split": "test"}),
}
FUNCTION = "Complete this Python function:\n\n```python\n{prompt}\n```"
#: Task ids of MBPP's test set (Austin et al. 2021, section 2.1).
MBPP_TEST = range(11, 511)


@dataclass(frozen=True)
class Writing:
    """How a model is asked.

    Attributes:
        tokenizer: The model's.
        context: Tokens that it takes at once, `None` without a limit.
        put: From a question to the text that the model continues.
        instructed: Whether it is told what to do, rather than given a text to continue.
        batch_size: Questions at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    context: int | None
    put: Callable[[str], str]
    instructed: bool
    batch_size: int


def gsm8k(
    writing: Writing, *, file: str | None = None, max_samples: int | None = None, max_new_tokens: int = 512
) -> Benchmark:
    """GSM8K's test set: share of right answers, and of texts without one.

    Args:
        writing: How the model is asked.
        file: The set; `None` for the Hub's.
        max_samples: The first so many problems.
        max_new_tokens: Longest solution.
    """
    source, hub = _where("gsm8k", file)
    rows = gsm8k_rows(load_table(source, **hub), source=source)
    return _maths("gsm8k", rows, writing, max_samples, max_new_tokens)


def math(
    writing: Writing, *, file: str | None = None, max_samples: int | None = None, max_new_tokens: int = 1024
) -> Benchmark:
    """MATH, of which MATH-500 is the usual sample: as `gsm8k`."""
    source, hub = _where("math", file)
    rows = math_rows(load_table(source, **hub), source=source)
    return _maths("math", rows, writing, max_samples, max_new_tokens)


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
    source, hub = _where("humaneval", file)
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
    problems = (
        load_mbpp(expand_path(file)) if file else load_mbpp("google-research-datasets/mbpp", name="full", split="test")
    )
    problems = [problem for problem in problems if int(problem.name.split("/")[1]) in MBPP_TEST]
    asked = [writing.put(p.prompt.removesuffix("\n[BEGIN]\n")) if writing.instructed else p.prompt for p in problems]
    return _code("mbpp", problems, asked, writing, max_samples, max_new_tokens, confirm_run_unsafe_code)


def mt_bench(
    writing: Writing,
    *,
    file: str,
    base_url: str,
    judge: str,
    max_samples: int | None = None,
    max_new_tokens: int = 1024,
    max_cost: float | None = None,
    api_key_env: str | None = "OPENAI_API_KEY",
    price_per_million_input: float | None = None,
    price_per_million_output: float | None = None,
    options: dict[str, Any] | None = None,
) -> Benchmark:
    """MT-Bench's two turns, rated from 1 to 10 by a model behind an endpoint; it needs a chat template.

    Args:
        writing: How the model is asked.
        file: `question.jsonl`.
        base_url: The judge's address, before `/chat/completions`.
        judge: The judge's name there.
        max_samples: The first so many questions.
        max_new_tokens: Longest answer.
        max_cost: What the ratings of one model may cost.
        api_key_env: Environment variable with the judge's key; `None` for an endpoint without keys.
        price_per_million_input: Price of a million tokens read.
        price_per_million_output: Price of a million tokens written.
        options: What else a request holds; `None` for `JudgeEndpoint`'s.
    """
    questions = read_questions(expand_path(file))[:max_samples]
    prices = {
        "price_per_million_input": price_per_million_input,
        "price_per_million_output": price_per_million_output,
    }
    rater = JudgeEndpoint(base_url, judge, api_key_env, **prices, **({} if options is None else {"options": options}))
    if writing.tokenizer.chat_template is None:
        raise BALoraError("the tokenizer has no chat template; give chat_template_path")

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        conversations = answer_questions(questions, model, writing.tokenizer, max_new_tokens=max_new_tokens)
        rows = [{"question_id": c.question.question_id, "answers": c.answers} for c in conversations]
        _keep(directory / "mt_bench.jsonl", rows)
        scores = mt_bench_score(conversations, rater, directory / "mt_bench_replies.jsonl", max_cost=max_cost)
        return {
            "mt_bench": scores["overall"],
            "mt_bench_turn_1": scores["turn_1"],
            "mt_bench_turn_2": scores["turn_2"],
            "mt_bench_missing": scores["missing"],
        }

    return measure


def wikitext2(writing: Writing, *, file: str | None = None, max_samples: int | None = None) -> Benchmark:
    """WikiText-2: perplexity by word and by byte, which do not depend on the vocabulary.

    Args:
        writing: For tokenizer, context and batch size.
        file: The set as it was published, a paragraph a line; `None` for the Hub's raw test set.
        max_samples: The first so many pages.
    """
    if file is not None:
        pages = read_pages(expand_path(file))
    else:
        source, hub = HUB["wikitext2"]
        pages = split_pages(line.removesuffix("\n") for line in load_table(source, **hub)["text"])

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        figures = wikitext_perplexity(
            model,
            writing.tokenizer,
            pages[:max_samples],
            context=writing.context,
            batch_size=writing.batch_size,
        )
        return {f"wikitext2_{name}": figures[name] for name in ("word_perplexity", "byte_perplexity")}

    return measure


def harness(
    writing: Writing,
    *,
    tasks: list[str],
    data_dir: str | None = None,
    limit: float | None = None,
    num_fewshot: int | None = None,
    max_gen_toks: int | None = None,
) -> Benchmark:
    """Tasks of lm-evaluation-harness; see `evaluate_with_harness`, whose arguments these are."""
    data_dir = data_dir and expand_path(data_dir)
    check_tasks(tasks, data_dir)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        found = evaluate_with_harness(
            model,
            writing.tokenizer,
            tasks,
            data_dir=data_dir,
            limit=limit,
            batch_size=writing.batch_size,
            num_fewshot=num_fewshot,
            max_gen_toks=max_gen_toks,
        )
        return {f"{task}_{name}": value for task, metrics in found.items() for name, value in metrics.items()}

    return measure


BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "gsm8k": gsm8k,
    "math": math,
    "humaneval": humaneval,
    "mbpp": mbpp,
    "mt_bench": mt_bench,
    "wikitext2": wikitext2,
    "harness": harness,
}


def _where(name: str, file: str | None) -> tuple[str, dict[str, str]]:
    """`load_table`'s arguments."""
    return (expand_path(file), {}) if file else HUB[name]


def _maths(name: str, rows: Dataset, writing: Writing, max_samples: int | None, max_new_tokens: int) -> Benchmark:
    rows = rows.select(range(min(len(rows), max_samples or len(rows))))
    asked = [writing.put(question) for question in rows["prompt"]]
    write = _writer(writing, asked, max_new_tokens)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        written = write(model)
        grades = grade_maths(written, rows["answer"])
        kept = zip(asked, written, rows["answer"], grades, strict=True)
        _keep(
            directory / f"{name}.jsonl",
            [{"prompt": p, "completion": c, "answer": a, "right": grade} for p, c, a, grade in kept],
        )
        return {
            f"{name}_accuracy": grades.count(True) / len(grades),
            f"{name}_unanswered": grades.count(None) / len(grades),
        }

    return measure


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
    write = _writer(writing, asked, max_new_tokens)

    def measure(model: PreTrainedModel, directory: Path) -> dict[str, float]:
        written = write(model)
        scores = score_code(problems, [[text] for text in written], confirm_run_unsafe_code=True)
        kept = zip(problems, asked, written, strict=True)
        _keep(
            directory / f"{name}.jsonl",
            [{"name": p.name, "prompt": q, "completion": c, **scores["problems"][p.name][0]} for p, q, c in kept],
        )
        return {f"{name}_pass@1": scores["pass@1"]}

    return measure


def _writer(writing: Writing, asked: Sequence[str], max_new_tokens: int) -> Callable[[PreTrainedModel], list[str]]:
    check_room(writing.tokenizer, asked, max_new_tokens, writing.context)

    def write(model: PreTrainedModel) -> list[str]:
        return generate_completions(
            model, writing.tokenizer, asked, max_new_tokens=max_new_tokens, batch_size=writing.batch_size
        )

    return write


def _keep(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
