"""One request: what is sent, what is tried again, what is an error, and where the key never is."""

import json
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from fake_judge import KEY, completion, status
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.evaluation.mt_bench import JudgeEndpoint
from balora.evaluation.mt_bench.replies import Reply, Usage, read_reply

MESSAGES = [{"role": "user", "content": "Wie gut? 好"}]


def failure(judge) -> str:
    with pytest.raises(BALoraError) as error:
        judge.ask(MESSAGES)
    assert KEY not in str(error.value)
    assert KEY not in str(error.getrepr())
    return str(error.value)


def test_a_request_is_openai_s_and_the_reply_is_kept_verbatim(fake, judge):
    text = "Gut: 好 \n[[7]] "
    fake.in_turn(completion(text))
    assert judge.ask(MESSAGES) == Reply(text, Usage(100, 10), "judge-2024", "stop")
    assert fake.paths == ["/v1/chat/completions"]
    assert fake.asked == [{"model": "judge", "messages": MESSAGES, "temperature": 0, "max_tokens": 2048}]
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert fake.headers[0]["Content-Type"] == "application/json"


def test_an_endpoint_without_keys_is_sent_none(fake, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    JudgeEndpoint(f"{fake.url}/", "judge", api_key_env=None, options={"max_completion_tokens": 9}).ask(MESSAGES)
    assert "Authorization" not in fake.headers[0]
    assert fake.paths == ["/v1/chat/completions"]
    assert fake.asked == [{"model": "judge", "messages": MESSAGES, "max_completion_tokens": 9}]


def test_cost_is_tokens_by_price():
    judge = JudgeEndpoint("http://a", "m", api_key_env=None, price_per_million_input=30, price_per_million_output=60)
    assert judge.cost(Usage(1_000_000, 500_000)) == 60
    assert replace(judge, price_per_million_output=None).cost(Usage(1, 1)) is None


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 529])
def test_temporary_errors_are_retried(fake, judge, pauses, code):
    fake.in_turn(status(code), status(code), completion("[[3]]"))
    assert judge.ask(MESSAGES).text == "[[3]]"
    assert pauses == [1, 2]
    assert fake.asked[0] == fake.asked[2]


@pytest.mark.parametrize(
    ("retry_after", "pause"), [("7", 7), ("0", 0), ("2.5", 2.5), ("-4", 0), ("soon", 1), ("nan", 1), ("", 1)]
)
def test_retry_after_is_honoured(fake, judge, pauses, retry_after, pause):
    fake.in_turn(status(429, Retry_After=retry_after), completion("[[3]]"))
    judge.ask(MESSAGES)
    assert pauses == [pause]


def test_retry_after_may_be_a_date(fake, judge, pauses):
    then = datetime.now(timezone.utc) + timedelta(seconds=60)
    fake.in_turn(status(503, Retry_After=format_datetime(then, usegmt=True)), completion("[[3]]"))
    judge.ask(MESSAGES)
    assert 50 < pauses[0] <= 60


def test_a_pause_of_an_hour_is_not_waited_for(fake, judge, pauses):
    fake.in_turn(status(429, Retry_After="3600"))
    assert f"{fake.url}: asks for a pause of 3600 seconds" in failure(judge)
    assert pauses == []


def test_pauses_grow_to_half_a_minute_and_no_further(fake, judge, pauses):
    fake.answer = lambda _: status(500)
    failure(replace(judge, max_retries=7))
    assert pauses == [1, 2, 4, 8, 16, 30, 30]
    assert len(fake.asked) == 8


def test_a_server_that_fails_thrice_is_named(fake, judge):
    fake.answer = lambda _: status(500, "out of order")
    message = failure(judge)
    assert f"{fake.url}: no reply from judge in 3 tries" in message
    assert "status 500, out of order" in message
    assert len(fake.asked) == 3


MALFORMED = [
    "",
    "<html>gateway</html>",
    '{"choices": [{"message": {"content": "[[7]]"',
    "[]",
    "7",
    "null",
    '{"choices": []}',
    '{"choices": {}}',
    '{"choices": ["[[7]]"]}',
    '{"choices": [{"message": null}]}',
    '{"choices": [{"message": {"content": [7]}}]}',
    '{"error": {"message": "overloaded"}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_reply_that_is_no_chat_completion_is_asked_for_again(fake, judge, text):
    fake.in_turn((200, text, {}), completion("[[4]]"))
    assert judge.ask(MESSAGES).text == "[[4]]"
    fake.in_turn(*[(200, text, {})] * 3)
    assert f"{fake.url}: no reply" in failure(judge)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "usage"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@settings(max_examples=50)
@given(JSON)
def test_any_json_is_parsed_or_gives_none(value):
    reply = read_reply(json.dumps(value))
    assert reply is None or isinstance(reply.text, str)


def test_an_empty_reply_has_an_empty_text(fake, judge):
    fake.in_turn(completion(None))
    assert judge.ask(MESSAGES).text == ""


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": "many", "completion_tokens": 1}])
def test_uncounted_tokens_are_unknown(fake, judge, usage):
    fake.in_turn(completion("[[7]]", usage))
    assert judge.ask(MESSAGES).usage is None


def test_a_lost_connection_is_tried_again_and_named(fake, judge):
    fake.in_turn(None, completion("[[7]]"))
    assert judge.ask(MESSAGES).text == "[[7]]"
    fake.answer = lambda _: None
    assert f"{fake.url}: no reply" in failure(judge)


def test_silence_is_a_lost_connection(fake, judge):
    over = threading.Event()

    def silence(_):
        over.wait(2)
        return None

    fake.answer = silence
    assert "timed out" in failure(replace(judge, timeout_s=0.05))
    over.set()
    assert len(fake.asked) == 3


def test_an_unreachable_endpoint_is_named(judge, fake):
    assert "http://127.0.0.1:9/v1: no reply" in failure(replace(judge, base_url="http://127.0.0.1:9/v1"))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (401, "does not accept the key in OPENAI_API_KEY"),
        (403, "does not accept the key in OPENAI_API_KEY"),
        (404, "there is no model judge, or base_url does not end before /chat/completions"),
        (400, "does not accept the request"),
        (422, "does not accept the request"),
    ],
)
def test_a_refusal_is_final(fake, judge, code, said):
    fake.in_turn(status(code))
    message = failure(judge)
    assert message.startswith(f"{fake.url}: answered {code}, it" if code != 404 else f"{fake.url}: answered 404")
    assert said in message
    assert "not so" in message
    assert len(fake.asked) == 1


def test_a_refusal_without_a_key_asks_for_one(fake, judge):
    fake.in_turn(status(401))
    assert "needs a key; set api_key_env" in failure(replace(judge, api_key_env=None))


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_does_not_carry_the_key_away(fake, judge, code):
    fake.in_turn(status(code, Location=f"{fake.url}/elsewhere"))
    assert "use the final address as base_url" in failure(judge)
    assert len(fake.asked) == 1


@pytest.mark.parametrize("code", [401, 429])
def test_a_key_that_the_endpoint_repeats_is_taken_out(fake, judge, code):
    fake.answer = lambda _: status(code, f"Incorrect API key provided: {KEY}. {'x' * 500}")
    message = failure(judge)
    assert "provided: [key]." in message
    assert len(message) < 600
    assert KEY not in repr(judge)


def test_a_key_that_comes_back_in_a_reply_is_taken_out(fake, judge):
    fake.in_turn(completion(f"your key is {KEY} [[7]]"))
    assert judge.ask(MESSAGES).text == "your key is [key] [[7]]"


@pytest.mark.parametrize("key", ["", "  ", f"{KEY}\nx", f"{KEY}é"])
def test_no_key_or_a_broken_one_is_an_error_at_once(monkeypatch, key):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(BALoraError, match=r"^JUDGE_KEY: ") as error:
        JudgeEndpoint("https://a/v1", "m", api_key_env="JUDGE_KEY")
    assert KEY not in str(error.value)


def test_a_key_with_a_line_end_is_meant_without(fake, judge, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\r\n")
    judge.ask(MESSAGES)
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("name", [KEY, "gsk_abcdef", ""])
def test_a_key_in_place_of_its_name_is_not_repeated(name):
    with pytest.raises(BALoraError, match=r"^api_key_env: not the name of an environment variable") as error:
        JudgeEndpoint("https://a/v1", "m", api_key_env=name)
    assert not name or name not in str(error.value)


@pytest.mark.parametrize(
    "address",
    ["", "a/v1", "ftp://a", "https://", "https://me:pass@a/v1", "https://a/v1?key=pass", "https://a b", "https://a:x"],
)
def test_a_malformed_address_raises_without_repeating_it(address):
    with pytest.raises(BALoraError, match=r"^base_url: give an address like") as error:
        JudgeEndpoint(address, "m", api_key_env=None)
    assert "pass" not in str(error.value)


@pytest.mark.parametrize(
    "address", ["https://a.b/v1", "http://localhost:8000/v1/", "http://[::1]:80", "http://10.0.0.1"]
)
def test_valid_addresses_are_accepted(address):
    assert JudgeEndpoint(address, "m", api_key_env=None).base_url == address
