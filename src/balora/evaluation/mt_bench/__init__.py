"""MT-Bench: eighty conversations of two turns, each answer rated from 1 to 10 by a strong model (Zheng et al. 2023).

Any endpoint that speaks OpenAI's chat completions can be the judge: a provider's, or vLLM's on the next machine.

    conversations = answer_questions(read_questions("question.jsonl"), model, tokenizer)
    prices = {"price_per_million_input": 30, "price_per_million_output": 60}
    judge = JudgeEndpoint("https://api.openai.com/v1", "gpt-4", **prices)
    mt_bench_score(conversations, judge, "replies.jsonl", max_cost=15)

The prompts are balora's own wording of the paper's single-answer grading, so scores compare with one another, under
the same judge, and not with published tables.
"""

from balora.evaluation.mt_bench.answers import answer_questions, chat_answer
from balora.evaluation.mt_bench.endpoint import JudgeEndpoint
from balora.evaluation.mt_bench.judge import judge_messages, parse_rating
from balora.evaluation.mt_bench.questions import Conversation, Question, answer_question, read_questions
from balora.evaluation.mt_bench.run import mt_bench_score

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
