"""MT-Bench: eighty conversations of two turns, each answer rated from 1 to 10 by a strong model (Zheng et al. 2023).

The judge can be any endpoint with OpenAI's chat completions API: a provider's, or your own vLLM server.

    conversations = answer_questions(read_questions("question.jsonl"), model, tokenizer)
    prices = {"price_per_million_input": 30, "price_per_million_output": 60}
    judge = JudgeEndpoint("https://api.openai.com/v1", "gpt-4", **prices)
    mt_bench_score(conversations, judge, "replies.jsonl", max_cost=15)

The prompts are balora's own wording of the paper's single-answer grading: scores of the same judge compare with one
another, but not with published tables.
"""

from balora.evaluation.mt_bench.conversations import (
    Conversation,
    Question,
    answer_question,
    answer_questions,
    chat_answer,
    read_questions,
)
from balora.evaluation.mt_bench.endpoint import JudgeEndpoint
from balora.evaluation.mt_bench.score import judge_messages, mt_bench_score, parse_rating

__all__ = [
    "Conversation",
    "JudgeEndpoint",
    "Question",
    "answer_question",
    "answer_questions",
    "chat_answer",
    "judge_messages",
    "mt_bench_score",
    "parse_rating",
    "read_questions",
]
