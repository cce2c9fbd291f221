"""The score: every answer put to the judge once, replies kept, ratings averaged."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.mt_bench.completion import Reply
from balora.evaluation.mt_bench.cost import Usage, bytes_of, completion_limit, expected_usage, largest_usage
from balora.evaluation.mt_bench.endpoint import JudgeEndpoint
from balora.evaluation.mt_bench.judge import judge_messages, parse_rating
from balora.evaluation.mt_bench.questions import Conversation
from balora.evaluation.mt_bench.replies import Key, append_reply, digest, read_replies

#: A reply without a rating is asked for once more; then the rating is missing.
TRIES = 2


@dataclass
class Judgement:
    """One answer before the judge: what to ask, and the replies so far."""

    category: str
    turn: int
    messages: list[dict[str, str]]
    key: Key
    replies: list[Reply]

    @property
    def rating(self) -> float | None:
        """The rating, `None` while or where there is none."""
        ratings = (parse_rating(reply.text) for reply in self.replies)
        return next((rating for rating in ratings if rating is not None), None)

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to ask."""
        return self.rating is not None or len(self.replies) >= TRIES

    @property
    def usage(self) -> Usage:
        """Tokens of all replies; of one that the endpoint did not count, at most those that are seen."""
        usage = Usage(0, 0)
        for reply in self.replies:
            usage += reply.usage or largest_usage(self.messages, bytes_of(reply.text))
        return usage


def mt_bench_score(
    conversations: Iterable[Conversation],
    judge: JudgeEndpoint,
    replies_file: str | Path,
    *,
    max_cost: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Have both answers of each conversation rated from 1 to 10, and average.

    Every reply is in the file before the next question is put; what is there is not asked again, by whichever model's
    answers it was, so that one file serves many runs (one at a time).

    Args:
        conversations: What a model answered.
        judge: Who rates.
        replies_file: JSONL file of replies, made if absent, gone on with if not.
        max_cost: The most that these judgements may cost, the replies already in the file included, in the currency of
            the judge's prices. Not begun if the estimate is above it; and no request goes out that could lead beyond,
            were it to use all of `max_tokens`.
        say: Told the estimate beforehand, and score and cost afterwards.

    Returns:
        `overall`, `turn_1` and `turn_2`: mean ratings, over all answers and those of one turn, NaN where there are
        none. `categories`: the mean of each. `judgements`: how many were wanted. `missing`: those of them without a
        rating after two replies, left out of every mean. `cost`: of all replies that the score rests on, and
        `cost_now`, of those asked for in this call; `None` without prices. `prompt_tokens` and `completion_tokens`:
        what the former is made of.

    Raises:
        BALoraError: If `max_cost` is reached or cannot be kept, the endpoint fails or the file is something else. What
            was rated stays in the file, and the same call goes on from there.
    """
    file = Path(replies_file)
    judgements = _judgements(conversations, judge, file)
    wanted = [judgement for judgement in judgements if not judgement.settled]
    before = judge.cost(_usage(judgements))
    estimate = judge.cost(sum((expected_usage(judgement.messages) for judgement in _distinct(wanted)), Usage(0, 0)))
    say(
        f"MT-Bench: {len(judgements)} judgements by {judge.model}, {len(wanted)} of them to ask for; "
        f"estimated cost: {_written(estimate)}"
    )
    if max_cost is not None:
        _check_estimate(judge, before, estimate, max_cost)
    for judgement in wanted:
        while not judgement.settled:
            if max_cost is not None:
                _check_bound(judgements, judge, judgement, max_cost, file)
            reply = _ask(judge, judgement)
            append_reply(file, judgement.key, reply)
            judgement.replies.append(reply)
    scores = _scores(judgements)
    usage = _usage(judgements)
    cost = judge.cost(usage)
    now = None if cost is None else cost - before
    say(
        f"MT-Bench: {scores['overall']:.2f} overall, {scores['turn_1']:.2f} and {scores['turn_2']:.2f} by turn, "
        f"{scores['missing']} ratings missing; cost: {_written(cost)}, of which now: {_written(now)}"
    )
    tokens = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
    return {**scores, "cost": cost, "cost_now": now, **tokens}


def _judgements(conversations: Iterable[Conversation], judge: JudgeEndpoint, file: Path) -> list[Judgement]:
    kept = read_replies(file)
    judgements = []
    for conversation in conversations:
        question = conversation.question
        for turn in (1, 2):
            messages = judge_messages(conversation, turn)
            key = (question.question_id, turn, judge.model, digest(messages, judge.options))
            judgements.append(Judgement(question.category, turn, messages, key, kept.setdefault(key, [])))
    return judgements


def _ask(judge: JudgeEndpoint, judgement: Judgement) -> Reply:
    try:
        return judge.ask(judgement.messages)
    except BALoraError as error:
        question_id, turn, *_ = judgement.key
        raise BALoraError(f"MT-Bench, question {question_id}, turn {turn}: {error}") from None


def _scores(judgements: Sequence[Judgement]) -> dict[str, Any]:
    def mean(part: Iterable[Judgement]) -> float:
        ratings = [judgement.rating for judgement in part if judgement.rating is not None]
        return statistics.fmean(ratings) if ratings else math.nan

    categories = dict.fromkeys(judgement.category for judgement in judgements)
    return {
        "overall": mean(judgements),
        "turn_1": mean(j for j in judgements if j.turn == 1),
        "turn_2": mean(j for j in judgements if j.turn == 2),
        "categories": {name: mean(j for j in judgements if j.category == name) for name in categories},
        "judgements": len(judgements),
        "missing": sum(judgement.rating is None for judgement in judgements),
    }


def _check_estimate(judge: JudgeEndpoint, before: float | None, estimate: float | None, max_cost: float) -> None:
    if before is None or estimate is None:
        raise BALoraError(
            "max_cost: cannot be kept without prices; give the judge price_per_million_input and "
            "price_per_million_output"
        )
    if completion_limit(judge.options) is None:
        raise BALoraError("max_cost: cannot be kept if replies have no end; give the judge's options max_tokens")
    if estimate > 0 and before + estimate > max_cost:
        raise BALoraError(
            f"max_cost: {max_cost} is less than the cost of about {_written(before + estimate)} that is to be "
            "expected; allow more, or have fewer conversations rated"
        )


def _check_bound(
    judgements: Sequence[Judgement], judge: JudgeEndpoint, judgement: Judgement, max_cost: float, file: Path
) -> None:
    spent = judge.cost(_usage(judgements))
    largest = judge.cost(largest_usage(judgement.messages, completion_limit(judge.options)))
    if largest > 0 and spent + largest > max_cost:
        rated = sum(judgement.settled for judgement in judgements)
        raise BALoraError(
            f"max_cost: {_written(spent)} of {max_cost} are spent and the next judgement could cost "
            f"{_written(largest)}; {rated} of {len(judgements)} are in {file}, allow more to go on with the rest"
        )


def _usage(judgements: Iterable[Judgement]) -> Usage:
    return sum((judgement.usage for judgement in _distinct(judgements)), Usage(0, 0))


def _distinct(judgements: Iterable[Judgement]) -> Iterable[Judgement]:
    """The same answer to the same question is judged once, however often it is among the conversations."""
    return {judgement.key: judgement for judgement in judgements}.values()


def _written(cost: float | None) -> str:
    return "unknown (no prices)" if cost is None else f"{cost:.4f}"
