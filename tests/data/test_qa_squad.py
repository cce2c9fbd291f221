"""SQuAD's rows: nested and flat, answerable and not, sentences cut by punctuation, one error per broken value."""

import copy
import itertools
import json

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from balora.data import load_table, squad_rows
from balora.data.qa import QA_FEATURES
from balora.data.qa_datasets import sentence_spans
from balora.errors import BALoraError

CONTEXT = ' Mr. J. Fox was born in 1950. He said "Stop!" Then he left, e.g. for Rome (Italy). It rained.'
SENTENCES = ["Mr. J. Fox was born in 1950.", 'He said "Stop!"', "Then he left, e.g. for Rome (Italy).", "It rained."]
NESTED = {
    "version": "v2.0",
    "data": [
        {
            "title": "J._Fox",
            "paragraphs": [
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Where did he go? ",
                            "is_impossible": False,
                            "answers": [
                                {"text": "Rome", "answer_start": CONTEXT.index("Rome")},
                                {"text": "Rome (Italy)", "answer_start": CONTEXT.index("Rome")},
                                {"text": "Rome", "answer_start": CONTEXT.index("Rome")},
                            ],
                        },
                        {
                            "id": "q2",
                            "question": "Why?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "rained", "answer_start": CONTEXT.index("rained")}],
                        },
                    ],
                }
            ],
        }
    ],
}


def nested_table(tmp_path, content):
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(content))
    return load_table(str(path))


def flat_rows(content):
    """Return the questions of a nested file in the schema of the Hub."""
    return [
        {
            "id": question["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {name: [answer[name] for answer in question["answers"]] for name in ("text", "answer_start")},
        }
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def test_nested_and_flat_become_the_same_rows(tmp_path):
    rows = squad_rows(nested_table(tmp_path, NESTED))
    assert rows.features == QA_FEATURES
    assert rows[0] == {
        "id": "q1",
        "question": "Where did he go?",
        "context": [{"title": "J. Fox", "sentences": SENTENCES}],
        "answer": "Rome",
        "answers": ["Rome", "Rome (Italy)"],
        "type": "",
        "level": "",
        "supporting": [SENTENCES[2]],
    }
    assert rows[1]["answers"] == ["noanswer"]
    assert rows[1]["supporting"] == []
    assert squad_rows(Dataset.from_list(flat_rows(NESTED))).to_list() == rows.to_list()


def test_the_answer_to_an_unanswerable_question_can_be_chosen(tmp_path):
    rows = squad_rows(nested_table(tmp_path, NESTED), unanswerable="unanswerable")
    assert rows["answer"][:] == ["Rome", "unanswerable"]


def flat(**changes):
    row = {**flat_rows(NESTED)[0], **changes}
    return Dataset.from_dict({name: [value] for name, value in row.items()}, on_mixed_types="use_json")


@pytest.mark.parametrize(
    ("text", "start", "supporting"),
    [
        ("Stop", CONTEXT.index("Stop") - 1, [SENTENCES[1]]),  # a character off, as in the real files
        ("1950. He", CONTEXT.index("1950"), SENTENCES[:2]),
        ("It rained", len(CONTEXT), []),
        ("It rained", -1, []),
    ],
)
def test_supporting_sentences_overlap_the_answer(text, start, supporting):
    rows = squad_rows(flat(answers={"text": [text], "answer_start": [start]}))
    assert rows[0]["supporting"] == supporting


def test_a_title_is_optional():
    rows = squad_rows(flat().remove_columns("title"))
    assert rows[0]["context"][0]["title"] == ""


@given(st.text(st.sampled_from('aB1 .!?"\n)é'), max_size=60))
def test_sentences_cover_the_text_except_white_space(text):
    spans = sentence_spans(text)
    pieces = [text[start:end] for start, end in spans]
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece and piece == piece.strip() for piece in pieces)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(spans))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "row 1, field 'question': is empty"),
        ({"context": None}, "row 1, field 'context': is missing"),
        ({"id": 3}, "row 1, field 'id': expected text, found 3"),
        ({"answers": {"text": ["a"], "answer_start": []}}, "row 1, field 'answers': expected {text: "),
        ({"answers": ["Rome"]}, "row 1, field 'answers': expected {text: "),
        ({"answers": {"text": [""], "answer_start": [0]}}, "row 1, field 'answers': is empty"),
        ({"answers": {"text": ["a"], "answer_start": [0.5]}}, "row 1, field 'answers': answer_start must be a whole"),
    ],
)
def test_a_broken_flat_value_is_named_with_its_row(changes, message):
    with pytest.raises(BALoraError) as raised:
        squad_rows(flat(**changes), source="squad")
    assert str(raised.value).startswith(f"squad, {message}")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("paragraphs",), [], None),
        (("paragraphs",), "x", "expected a list of objects, found 'x'"),
        (("paragraphs", 0, "qas"), "x", "paragraph 1, qas: expected a list of objects, found 'x'"),
        (("paragraphs", 0, "context"), "", "paragraph 1, question 1, context: is empty"),
        (("paragraphs", 0, "qas", 1, "question"), "", "paragraph 1, question 2, question: is empty"),
        (("paragraphs", 0, "qas", 1, "answers"), None, "paragraph 1, question 2, answers: expected a list of objects"),
        (("paragraphs", 0, "qas", 0, "answers", 1, "text"), " ", "paragraph 1, question 1, answers: is empty"),
    ],
)
def test_a_broken_nested_value_is_named_with_its_place(tmp_path, path, value, message):
    content = copy.deepcopy(NESTED)
    content["data"].append(copy.deepcopy(content["data"][0]))
    inner = content["data"][1]
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    loaded = nested_table(tmp_path, content)
    if message is None:
        assert len(squad_rows(loaded)) == 2
        return
    with pytest.raises(BALoraError) as raised:
        squad_rows(loaded, source="squad")
    assert str(raised.value).startswith(f"squad, row 2, field 'paragraphs': {message}")


def test_other_tables_raise():
    with pytest.raises(BALoraError, match=r"^squad: neither SQuAD's official 'paragraphs' nor .*; it has 'a'"):
        squad_rows(Dataset.from_dict({"a": [1]}), source="squad")
    with pytest.raises(BALoraError, match=r"^squad: no questions"):
        squad_rows(Dataset.from_dict({"title": ["a"], "paragraphs": [[]]}), source="squad")
