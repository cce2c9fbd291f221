"""MT-Bench: two turns of conversation, rated by another model."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from balora.data import expand_path
from balora.errors import BALoraError
from balora.evaluation.benchmarks.writing import Benchmark, Writing, keep
from balora.evaluation.mt_bench import JudgeEndpoint, answer_questions, mt_bench_score, read_questions


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
        keep(directory / "mt_bench.jsonl", rows)
        scores = mt_bench_score(conversations, rater, directory / "mt_bench_replies.jsonl", max_cost=max_cost)
        return {
            "mt_bench": scores["overall"],
            "mt_bench_turn_1": scores["turn_1"],
            "mt_bench_turn_2": scores["turn_2"],
            "mt_bench_missing": scores["missing"],
        }

    return measure
