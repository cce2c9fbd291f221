"""MT-Bench as a benchmark: two turns of conversation, rated by another model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.benchmark import Benchmark, PromptSettings, save_rows
from balora.evaluation.metric import Definition, Units, without_units
from balora.evaluation.mt_bench import JudgeEndpoint, Question, answer_questions, mt_bench_score, read_questions


@dataclass(frozen=True)
class Conversations:
    """MT-Bench's questions, and the judge that rates the answers."""

    questions: Sequence[Question]
    judge: JudgeEndpoint
    max_new_tokens: int
    max_cost: float | None


def _read(
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
) -> Conversations:
    """Read MT-Bench's questions, whose two turns are rated from 1 to 10 by a model behind an endpoint.

    Args:
        file: `question.jsonl`.
        base_url: The judge's address, before `/chat/completions`.
        judge: The judge's name there.
        max_samples: The first so many questions.
        max_new_tokens: Longest answer.
        max_cost: Highest cost of rating one model.
        api_key_env: Environment variable with the judge's key; `None` for an endpoint without keys.
        price_per_million_input: Price of a million tokens read.
        price_per_million_output: Price of a million tokens written.
        options: Further entries of a request; `None` for `JudgeEndpoint`'s.
    """
    questions = read_questions(expand_path(file))[:max_samples]
    prices = {
        "price_per_million_input": price_per_million_input,
        "price_per_million_output": price_per_million_output,
    }
    rater = JudgeEndpoint(base_url, judge, api_key_env, **prices, **({} if options is None else {"options": options}))
    return Conversations(questions, rater, max_new_tokens, max_cost)


def _check(_: Conversations, prompts: PromptSettings) -> None:
    if prompts.tokenizer.chat_template is None:
        raise BALoraError("the tokenizer has no chat template; give chat_template_path")


def _ask(model: PreTrainedModel, problems: Conversations, prompts: PromptSettings) -> dict[str, Any]:
    """Write the answers into a file before they are rated, each rating as it comes, and return the scores."""
    how = {"max_new_tokens": problems.max_new_tokens}
    conversations = answer_questions(problems.questions, model, prompts.tokenizer, **how)
    rows = [{"question_id": own.question.question_id, "answers": own.answers} for own in conversations]
    save_rows(prompts.directory / "mt_bench.jsonl", rows)
    replies = prompts.directory / "mt_bench_replies.jsonl"
    return mt_bench_score(conversations, problems.judge, replies, max_cost=problems.max_cost)


def _metrics(_: Conversations, scores: dict[str, Any]) -> dict[str, Units]:
    names = {
        "mt_bench": "overall",
        "mt_bench_turn_1": "turn_1",
        "mt_bench_turn_2": "turn_2",
        "mt_bench_missing": "missing",
    }
    return without_units({name: scores[score] for name, score in names.items()})


MT_BENCH = Benchmark(
    name="mt_bench",
    title="MT-Bench",
    read=_read,
    ask=_ask,
    metrics=_metrics,
    check=_check,
    unit="set",  # means of the judge's ratings, without an interval
    definitions={
        "mt_bench": Definition("higher", "Mean rating of both turns of MT-Bench by the judge, from 1 to 10."),
        "mt_bench_turn_1": Definition("higher", "Mean rating of MT-Bench's first turn by the judge, from 1 to 10."),
        "mt_bench_turn_2": Definition("higher", "Mean rating of MT-Bench's second turn by the judge, from 1 to 10."),
        "mt_bench_missing": Definition(
            "lower", "Answers to MT-Bench that the judge gave no rating, left out of the means."
        ),
    },
)
