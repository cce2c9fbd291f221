"""HotpotQA's rows: both schemas, the real files, facts without a sentence, one error per broken value."""

import json

import pytest
from datasets import Dataset

from balora.data import hotpotqa_rows, load_table
from balora.data.qa import QA_FEATURES
from balora.errors import BALoraError

OFFICIAL = {
    "_id": "a1",
    "question": " Who wrote it? ",
    "answer": "Ann",
    "type": "bridge",
    "level": "hard",
    "context": [["It", ["It is a book.", "  ", " Ann wrote it."]], ["Ann", ["Ann is a writer."]]],
    "supporting_facts": [["It", 2], ["Ann", 0]],
}
FILES = {"dev_distractor_500.jsonl": 500, "train_distractor_100.json": 100}


def on_hub(row):
    """Convert a row of the official files to the schema of the Hub's `hotpotqa/hotpot_qa`."""
    return {
        "id": row["_id"],
        **{name: row[name] for name in ("question", "answer", "type", "level")},
        "context": {"title": [t for t, _ in row["context"]], "sentences": [s for _, s in row["context"]]},
        "supporting_facts": {
            "title": [t for t, _ in row["supporting_facts"]],
            "sent_id": [i for _, i in row["supporting_facts"]],
        },
    }


def table(tmp_path, *rows):
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps(rows))
    return load_table(str(path))


@pytest.mark.parametrize("form", [lambda row: row, on_hub])
def test_both_schemas_become_the_same_rows(tmp_path, form):
    rows = hotpotqa_rows(table(tmp_path, form(OFFICIAL)))
    assert rows.features == QA_FEATURES
    assert rows[0] == {
        "id": "a1",
        "question": "Who wrote it?",
        "context": [
            {"title": "It", "sentences": ["It is a book.", "Ann wrote it."]},
            {"title": "Ann", "sentences": ["Ann is a writer."]},
        ],
        "answer": "Ann",
        "answers": ["Ann"],
        "type": "bridge",
        "level": "hard",
        "supporting": ["Ann wrote it.", "Ann is a writer."],
    }


def test_facts_that_point_to_no_sentence_are_dropped(tmp_path):
    facts = [["It", 3], ["It", -1], ["It", 1], ["Nobody", 0], ["It", 0], ["It", 0]]
    rows = hotpotqa_rows(table(tmp_path, {**OFFICIAL, "supporting_facts": facts}))
    assert rows[0]["supporting"] == ["It is a book."]


@pytest.mark.parametrize("form", [lambda row: row, on_hub])
def test_a_title_that_is_a_number_stays_a_title(tmp_path, form):
    row = {**OFFICIAL, "context": [["1984", ["It is a book."]], ["It", ["Ann."]]], "supporting_facts": [["1984", 0]]}
    rows = hotpotqa_rows(table(tmp_path, form(row)))
    assert rows[0]["context"][0] == {"title": "1984", "sentences": ["It is a book."]}
    assert rows[0]["supporting"] == ["It is a book."]


def test_rows_without_types_levels_and_facts(tmp_path):
    bare = {name: value for name, value in OFFICIAL.items() if name not in ("type", "level")}
    rows = hotpotqa_rows(table(tmp_path, {**bare, "supporting_facts": []}))
    assert (rows[0]["type"], rows[0]["level"], rows[0]["supporting"]) == ("", "", [])


@pytest.mark.parametrize("name", FILES)
def test_the_real_files(data_dir, name):
    path = data_dir / "hotpotqa" / name
    text = path.read_text()
    raw = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    rows = hotpotqa_rows(load_table(str(path)), source=name)
    assert len(rows) == len(raw) == FILES[name]
    for row, known in zip(rows, raw, strict=True):
        assert (row["id"], row["type"], row["level"]) == (known["_id"], known["type"], known["level"])
        assert row["answers"] == [row["answer"]] == [known["answer"].strip()]
        paragraphs = dict(known["context"])
        assert row["supporting"] == [paragraphs[title][index].strip() for title, index in known["supporting_facts"]]
        words = [sentence.split() for _, sentences in known["context"] for sentence in sentences if sentence.strip()]
        assert [s.split() for paragraph in row["context"] for s in paragraph["sentences"]] == words
    hub = hotpotqa_rows(Dataset.from_list([on_hub(row) for row in raw[:50]]))
    assert hub.to_list() == rows.select(range(50)).to_list()


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("question", " ", "is empty"),
        ("answer", None, "is missing"),
        ("answer", 3, "expected text, found 3"),
        ("type", None, "is missing"),
        ("context", [], r"expected \[\[title, \[sentence, …\]\], …\] or \{title: "),
        ("context", [["It", "a sentence"]], "expected .*, found"),
        ("context", [["It"]], "expected .*, found"),
        ("context", {"title": ["It"], "sentences": []}, "expected .*, found"),
        ("context", "text", "expected .*, found 'text'"),
        ("supporting_facts", [["It", "first"]], "expected .*sent_id"),
        ("supporting_facts", [["It", True]], "expected .*sent_id"),
        ("supporting_facts", None, "expected .*, found None"),
    ],
)
def test_a_broken_value_is_named_with_its_row(tmp_path, field, value, problem):
    broken = table(tmp_path, OFFICIAL, {**OFFICIAL, field: value})
    with pytest.raises(BALoraError, match=rf"^hotpot, row 2, field '{field}': {problem}"):
        hotpotqa_rows(broken, source="hotpot")


@pytest.mark.parametrize("name", ["question", "answer", "context", "supporting_facts"])
def test_a_missing_column_raises(tmp_path, name):
    with pytest.raises(BALoraError, match=f"^hotpot: no column '{name}'; it has '_id', "):
        hotpotqa_rows(table(tmp_path, OFFICIAL).remove_columns(name), source="hotpot")


def test_rows_need_an_id(tmp_path):
    with pytest.raises(BALoraError, match=r"^hotpot: no column '_id' or 'id'; it has 'question'"):
        hotpotqa_rows(table(tmp_path, OFFICIAL).remove_columns("_id"), source="hotpot")
