"""The judge's prompt, and the parsing of its rating."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.evaluation.mt_bench import Conversation, Question, judge_messages, parse_rating, read_questions


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("[[7]]", 7),
        ("Good.\n[[7.5]]", 7.5),
        ("Rating: [[10]]", 10),
        ("**[[ 1 ]]**.", 1),
        ("It ends with [[10]], as told to; yet it is wrong.\n[[2]]", 2),
        ("7", None),
        ("[7]", None),
        ("[[n]]", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[10.5]]", None),
        ("[[-3]]", None),
        ("[[7/10]]", None),
        ("[[1, 2]]", None),
        ("[[7]], no: [[70]]", None),
        ("[[٧]]", None),
        ("", None),
    ],
)
def test_parse_rating(reply, rating):
    assert parse_rating(reply) == rating


@given(st.decimals(-20, 20, places=2), st.text(alphabet=st.characters(exclude_characters="[]")))
def test_ratings_are_from_1_to_10_wherever_they_stand(number, text):
    expected = float(number) if 1 <= number <= 10 else None
    assert parse_rating(f"{text}[[{number}]]{text}") == expected


@given(st.text())
def test_no_text_breaks_the_reading(text):
    rating = parse_rating(text)
    assert rating is None or 1 <= rating <= 10


def shown(category, turn, references=("ref one", "ref two")):
    talk = Conversation(Question(1, category, ("ask one", "ask two"), references), ("said one", "said two"))
    (message,) = judge_messages(talk, turn)
    assert message["role"] == "user"
    return message["content"]


def test_the_first_turn_is_judged_without_the_second_and_the_second_with_all():
    first, second = shown("writing", 1), shown("writing", 2)
    assert "ask one" in first
    assert "said one" in first
    assert "ask two" not in first
    assert "said two" not in first
    places = [second.index(text) for text in ("ask one", "said one", "ask two", "said two")]
    assert places == sorted(places)
    assert "second answer only" in second
    assert "second" not in first
    assert first.endswith("[[n]].")
    assert second.endswith("[[n]].")


@pytest.mark.parametrize("category", ["math", "reasoning", "coding"])
def test_references_are_shown_where_there_is_a_right_answer(category):
    assert "<reference_answer_1>\nref one\n" in shown(category, 1)
    assert "ref two" not in shown(category, 1)
    both = shown(category, 2)
    assert "<reference_answer_1>\nref one\n" in both
    assert "<reference_answer_2>\nref two\n" in both
    assert "take reference_answer_2 to be right" in both
    # An answer is not compared with the reference of another question.
    assert "to be right" not in shown(category, 2, ("ref one", None))
    assert "reference" not in shown(category, 2, (None, None))


@pytest.mark.parametrize("category", ["writing", "roleplay", "extraction", "stem", "humanities"])
def test_references_are_not_shown_in_other_categories(category):
    assert "ref" not in shown(category, 1)
    assert "ref" not in shown(category, 2)


def test_every_real_question_stands_in_its_prompts_once(data_dir):
    with_reference = []
    for question in read_questions(data_dir / "mt_bench" / "question.jsonl"):
        talk = Conversation(question, ("<<first answer>>", "<<second answer>>"))
        first, second = (judge_messages(talk, turn)[0]["content"] for turn in (1, 2))
        assert all(first.count(text) == 1 for text in (f"\n{question.turns[0]}\n", "<<first answer>>"))
        assert all(second.count(f"\n{text}\n") == 1 for text in (*question.turns, *talk.answers))
        if "<reference_answer_1>" in first:
            with_reference.append(question.question_id)
    # Reasoning, maths and coding; one of the coding questions has none.
    assert with_reference == [i for i in range(101, 131) if i != 123]
