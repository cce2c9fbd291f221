"""The score: each request sent once, stored at once, resumed, averaged, and never above the bound."""

import json
import math
import statistics
from contextlib import suppress
from dataclasses import replace

import pytest
from fake_judge import KEY, completion, conversation, status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.evaluation.mt_bench import (
    JudgeEndpoint,
    answer_question,
    judge_messages,
    mt_bench_score,
    read_questions,
)
from balora.evaluation.mt_bench.replies import Reply, Usage, append_reply, read_replies

#: What one of the fake judge's replies costs, by its usage and the fixture's prices.
REPLY_COST = (100 * 1000 + 10 * 5000) / 1e6


@pytest.fixture
def file(tmp_path):
    return tmp_path / "new" / "replies.jsonl"


def lines(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def score(conversations, judge, file, **how):
    told = []
    return mt_bench_score(conversations, judge, file, say=told.append, **how), told


def test_the_real_questions_make_160_judgements(fake, judge, file, data_dir):
    questions = read_questions(data_dir / "mt_bench" / "question.jsonl")
    talks = [answer_question(question, lambda messages: f"to {messages[-1]['content']}") for question in questions]
    # Each prompt's rating depends on it, so that none can be mistaken for another's.
    given = {}

    def rate(body):
        prompt = body["messages"][0]["content"]
        given[prompt] = 1 + len(prompt) % 91 / 10
        return completion(f"So so.\n[[{given[prompt]:.1f}]]")

    fake.answer = rate
    scores, told = score(talks, judge, file)
    assert len(fake.asked) == len(given) == len(lines(file)) == 160
    first, second = list(given.values())[::2], list(given.values())[1::2]
    assert all(question.turns[1] not in prompt for question, prompt in zip(questions, fake.prompts[::2], strict=True))
    assert all(talk.answers[1] in prompt for talk, prompt in zip(talks, fake.prompts[1::2], strict=True))
    assert scores["turn_1"] == pytest.approx(statistics.fmean(first))
    assert scores["turn_2"] == pytest.approx(statistics.fmean(second))
    assert scores["overall"] == pytest.approx(statistics.fmean(first + second))
    for number, (name, mean) in enumerate(scores["categories"].items()):
        assert name == questions[10 * number].category
        assert mean == pytest.approx(statistics.fmean(list(given.values())[20 * number : 20 * number + 20]))
    assert len(scores["categories"]) == 8
    assert (scores["judgements"], scores["missing"]) == (160, 0)
    assert scores["cost"] == scores["cost_now"] == pytest.approx(160 * REPLY_COST)
    assert (scores["prompt_tokens"], scores["completion_tokens"]) == (16_000, 1_600)
    assert "160 judgements by judge, 160 of them to request; estimated cost: " in told[0]
    assert f"{scores['overall']:.2f} overall" in told[1]
    assert "cost: 24.0000, of which now: 24.0000" in told[1]

    again, told = score(talks, judge, file)
    assert len(fake.asked) == 160
    assert again == {**scores, "cost_now": 0}
    assert "0 of them to request; estimated cost: 0.0000" in told[0]


def test_replies_are_kept_verbatim_with_what_they_are_about(fake, judge, file):
    texts = ["Gut.\r\n\t好 \ud800 \x00 [[7]] ", "[[10]]\n"]
    fake.in_turn(*map(completion, texts))
    score([conversation(5)], judge, file)
    rows = lines(file)
    assert [row["reply"] for row in rows] == texts
    assert [(row["question_id"], row["turn"], row["judge"]) for row in rows] == [(5, 1, "judge"), (5, 2, "judge")]
    assert all(row["usage"] == {"prompt_tokens": 100, "completion_tokens": 10} for row in rows)
    assert all(row["served_model"] == "judge-2024" and row["finish_reason"] == "stop" for row in rows)
    assert KEY not in file.read_text()
    assert "Authorization" not in file.read_text()


@pytest.mark.parametrize("interrupted_after", [0, 1, 3, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, BALoraError])
def test_after_an_interruption_only_what_is_missing_is_asked(fake, judge, file, interrupted_after, error, monkeypatch):
    talks = [conversation(i) for i in (1, 2, 3)]
    ask = JudgeEndpoint.ask

    def break_off(self, messages):
        if len(fake.asked) == interrupted_after:
            raise error("enough")
        return ask(self, messages)

    with monkeypatch.context() as patch:
        patch.setattr(JudgeEndpoint, "ask", break_off)
        with pytest.raises(error):
            score(talks, judge, file)
    assert len(fake.asked) == interrupted_after
    fake.answer = lambda _: completion("[[5]]")
    scores, _ = score(talks, judge, file)
    assert len(fake.prompts) == len(set(fake.prompts)) == 6
    assert scores["overall"] == (7 * interrupted_after + 5 * (6 - interrupted_after)) / 6
    assert scores["cost"] == pytest.approx(6 * REPLY_COST)
    assert scores["cost_now"] == pytest.approx((6 - interrupted_after) * REPLY_COST)


@settings(max_examples=40)
@given(cut=st.integers(min_value=0))
def test_a_half_written_line_is_dropped_and_asked_again(cut, tmp_path_factory):
    file = tmp_path_factory.mktemp("cut") / "replies.jsonl"
    keys = [(i, 1, "judge", "d") for i in range(3)]
    for key in keys:
        append_reply(file, key, Reply("[[7]]", None, None, None))
    whole = file.read_bytes()
    cut %= len(whole) + 1
    file.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert list(read_replies(file)) == keys[:kept]
    assert file.read_bytes() == b"".join(whole.splitlines(keepends=True)[:kept])
    append_reply(file, keys[2], Reply("again", None, None, None))
    assert read_replies(file)[keys[2]][-1].text == "again"


@pytest.mark.parametrize(
    "content", ["notes", "notes\nof mine\n", '{"question_id": 81, "turns": []}\n', "[]\n", "{}\nx"]
)
def test_a_file_that_is_something_else_is_left_as_it_is(fake, judge, tmp_path, content):
    file = tmp_path / "notes.txt"
    file.write_text(content)
    with pytest.raises(BALoraError, match=r"notes\.txt, line 1: not a judge's reply"):
        score([conversation(1)], judge, file)
    assert file.read_text() == content
    assert fake.asked == []


def test_another_answer_question_judge_or_request_is_asked_anew(fake, judge, file):
    score([conversation(1)], judge, file)
    score([conversation(1, answers=("one", "other"))], judge, file)
    assert len(fake.asked) == 3  # the first turn is the same
    score([conversation(1, answers=("other", "two"))], judge, file)
    assert len(fake.asked) == 5  # the second is judged with the first before it
    score([conversation(2)], judge, file)
    assert len(fake.asked) == 7
    score([conversation(1)], replace(judge, model="another"), file)
    assert len(fake.asked) == 9
    score([conversation(1)], replace(judge, options={"max_tokens": 5}), file)
    assert len(fake.asked) == 11
    score([conversation(1), conversation(2), conversation(1, answers=("one", "other"))], judge, file)
    assert len(fake.asked) == 11


def test_the_same_conversation_twice_is_judged_and_paid_once(fake, judge, file):
    scores, _ = score([conversation(1), conversation(1)], judge, file)
    assert len(fake.asked) == 2
    assert scores["judgements"] == 4
    assert scores["cost"] == pytest.approx(2 * REPLY_COST)


def test_a_reply_without_a_rating_is_asked_for_once_more_and_then_missing(fake, judge, file):
    fake.in_turn(*map(completion, ["seven", "[[0]]", "hm", "[[3]]", None, "", "[[9]]"]))
    talks = [conversation(1, "math"), conversation(2, "stem")]
    scores, told = score(talks, judge, file)
    assert (scores["missing"], scores["judgements"]) == (2, 4)
    assert (scores["overall"], scores["turn_2"]) == (6, 6)
    assert math.isnan(scores["turn_1"])
    assert scores["categories"] == {"math": 3, "stem": 9}
    assert scores["cost"] == pytest.approx(7 * REPLY_COST)  # every reply was paid
    assert [row["reply"] for row in lines(file)] == ["seven", "[[0]]", "hm", "[[3]]", "", "", "[[9]]"]
    assert "2 ratings missing" in told[1]
    again, _ = score(talks, judge, file)
    assert len(fake.asked) == 7
    assert again["missing"] == 2


def test_one_reply_without_a_rating_leaves_one_more_try_after_an_interruption(fake, judge, file):
    fake.in_turn(completion("hm"), status(400))
    with pytest.raises(BALoraError, match=r"^MT-Bench, question 1, turn 1: http.*answered 400"):
        score([conversation(1)], judge, file)
    fake.in_turn(completion("hm"), completion("[[8]]"))
    scores, _ = score([conversation(1)], judge, file)
    assert (scores["missing"], scores["overall"]) == (1, 8)


def test_an_estimate_above_the_bound_is_told_before_anything_is_asked(fake, judge, file):
    with pytest.raises(BALoraError, match=r"max_cost: 1 is less than the expected cost of about \d+\.\d+"):
        score([conversation(i) for i in range(10)], judge, file, max_cost=1)
    assert fake.asked == []
    assert not file.exists()


@pytest.mark.parametrize("counted", [True, False])
def test_the_bound_stops_in_time_and_a_higher_one_goes_on(fake, judge, file, counted):
    # A judge that writes as much as it may, where about a seventh was expected.
    judge = replace(judge, options={"max_tokens": 2048})
    usage = {"prompt_tokens": 500, "completion_tokens": 2048} if counted else None
    fake.answer = lambda _: completion("[[7]]" + " " * (0 if counted else 2043), usage)
    talks = [conversation(i) for i in range(4)]
    with pytest.raises(
        BALoraError, match=r"max_cost: .* of 40 are spent and the next judgement could cost .* of 8"
    ) as e:
        score(talks, judge, file, max_cost=40)
    asked = len(fake.asked)
    assert asked == len(lines(file)) == 3  # at 10.74 each at least, the fourth could lead beyond 40
    assert f"3 of 8 are in {file}" in str(e.value)
    scores, _ = score(talks, judge, file, max_cost=100)
    assert len(fake.asked) == 8
    assert scores["cost"] <= 100
    score(talks, judge, file, max_cost=0.01)  # nothing more to pay


class Spender(JudgeEndpoint):
    """Uses no tokens or all that a request allows, and rates or not."""

    def ask(self, messages):
        data = self.options["data"]
        most = sum(len(message["content"].encode()) for message in messages)
        usage = Usage(*(data.draw(st.sampled_from([0, limit])) for limit in (most, self.options["max_tokens"])))
        self.options["paid"].append(self.cost(usage))
        return Reply(data.draw(st.sampled_from(["[[7]]", "hm"])), usage, None, None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), prices=st.tuples(st.floats(0, 100), st.floats(0, 100)), max_cost=st.floats(0, 1))
def test_no_bound_is_ever_exceeded(data, prices, max_cost, tmp_path_factory, monkeypatch):
    monkeypatch.setattr("balora.evaluation.mt_bench.score.digest", lambda messages, options: str(messages))
    options = {"max_tokens": data.draw(st.sampled_from([1, 4000])), "data": data, "paid": []}
    spender = Spender("http://a", "m", None, 1, 0, *prices, options)
    with suppress(BALoraError):
        score([conversation(i) for i in range(4)], spender, tmp_path_factory.mktemp("x") / "f", max_cost=max_cost)
    assert sum(options["paid"]) <= max_cost * (1 + 1e-9)


@pytest.mark.parametrize("judgements", [2.7, 3.8, 4.9])
def test_a_prompt_may_have_a_token_for_each_byte(fake, judge, file, judgements):
    size = len(judge_messages(conversation(1), 1)[0]["content"].encode())
    fake.answer = lambda body: completion("[[7]]", Usage(len(body["messages"][0]["content"].encode()), 1).__dict__)
    judge = replace(judge, price_per_million_input=1e6, price_per_million_output=0)
    with pytest.raises(BALoraError, match="are spent"):
        score([conversation(i) for i in range(1, 5)], judge, file, max_cost=judgements * size)
    assert 0 < sum(row["usage"]["prompt_tokens"] for row in lines(file)) <= judgements * size


def test_a_bound_needs_prices_and_an_end_of_replies(fake, judge, file):
    with pytest.raises(BALoraError, match="max_cost: cannot be kept without prices"):
        score([conversation(1)], replace(judge, price_per_million_input=None), file, max_cost=1)
    with pytest.raises(BALoraError, match="max_cost: cannot be kept if replies have no limit"):
        score([conversation(1)], replace(judge, options={}), file, max_cost=1)
    assert fake.asked == []


def test_without_prices_there_is_no_cost_and_a_local_judge_costs_nothing(fake, judge, file):
    scores, told = score([conversation(1)], replace(judge, price_per_million_output=None), file)
    assert scores["cost"] is None
    assert scores["cost_now"] is None
    assert "unknown (no prices)" in told[0]
    assert "unknown (no prices)" in told[1]
    assert scores["prompt_tokens"] == 200
    free = replace(judge, price_per_million_input=0, price_per_million_output=0)
    scores, _ = score([conversation(2)], free, file, max_cost=0)
    assert scores["cost"] == 0


def test_a_failing_endpoint_is_named_with_the_question_and_nothing_is_lost(fake, judge, file):
    fake.in_turn(completion("[[7]]"), *[status(500)] * 3)
    with pytest.raises(BALoraError, match=r"^MT-Bench, question 1, turn 2: http://127.0.0.1.*3 tries"):
        score([conversation(1)], judge, file)
    assert len(lines(file)) == 1


def test_the_key_is_in_no_file_and_no_message(fake, judge, tmp_path, capsys):
    fake.in_turn(completion(f"[[7]] {KEY}"), status(401, f"wrong key {KEY}"))
    with pytest.raises(BALoraError) as error:
        mt_bench_score([conversation(1)], judge, tmp_path / "replies.jsonl")
    assert "wrong key [key]" in str(error.value)
    printed = capsys.readouterr()
    assert "estimated cost" in printed.out
    assert KEY not in printed.out + printed.err + str(error.value) + repr(judge)
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_usage_adds_up():
    assert sum([Usage(1, 2), Usage(3, 4)], Usage(0, 0)) == Usage(4, 6)
