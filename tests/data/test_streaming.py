"""Streamed rows: the rows and errors of `load_table`, read lazily, in a reproducible order."""

import gzip
import json
from itertools import islice

import pytest
from datasets import Dataset, IterableDataset, IterableDatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.data import load_table, sources, stream_table, to_causal_lm_rows
from balora.data.streaming import ROW, Passes, read_whole, stream_causal_lm_rows
from balora.errors import BALoraError

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def jsonl(tmp_path, *rows, then: str = "") -> str:
    return written(tmp_path, "train.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows) + then)


def streamed(path, **columns):
    return stream_causal_lm_rows(stream_table(path), source="train.jsonl", **columns)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '\ufeff{"a": "1"}\r\n\n{"a": "é\u2028"}\n'),
        ("a.jsonl.gz", gzip.compress(b'{"a": "1"}\n{"a": "2"}', mtime=0)),
        ("a.TSV", '\ufeffa\tb\r\n"x\ty"\r\n\t\n'),
        ("a.csv", 'a,b\r\n"1,\n""2""",NA\n'),
        ("a.csv", '\ufeffa;b\r\n"1;";2,5\r\n'),
        ("a.csv", "sep=;\na;b\n1;2\n"),
        ("a.csv", "a\n" + "x" * 200_000),
        ("a.txt", "x\r\n \n\ny z "),
    ],
)
def test_streamed_files_have_the_rows_of_load_table(tmp_path, name, content):
    path = written(tmp_path, name, content)
    assert list(stream_table(path)) == list(stream_table(path)) == load_table(path).to_list()


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_column_names_replace_a_missing_header(tmp_path, name):
    path = written(tmp_path, name, "1,2\n3,4\n".replace(",", "\t" if name == "a.tsv" else ","))
    rows = stream_table(path, column_names=["a", "b"])
    assert list(rows) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert rows.num_shards == 1


def test_parquet_is_read_in_batches(tmp_path):
    whole = Dataset.from_dict({"text": [f"row {i}" for i in range(600)], "chat": [CHAT] * 600})
    whole.to_parquet(tmp_path / "a.parquet")
    assert list(stream_table(str(tmp_path / "a.parquet"))) == whole.to_list()


def test_streamed_real_rows_equal_those_of_load_table(data_dir):
    columns = {"prompt_column": "question", "completion_column": "answer", "prompt_template": "Q: {prompt}\nA:"}
    path = str(data_dir / "gsm8k/test.jsonl")
    rows = list(stream_causal_lm_rows(stream_table(path), source="test", **columns))
    assert [row.pop(ROW) for row in rows] == [*range(1, 1320)]
    assert rows == to_causal_lm_rows(load_table(path), source="test", **columns).to_list()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": \n', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl, line 2: expected a JSON object, found a list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, line 2: not UTF-8"),
        ("a.jsonl.gz", b"not gzip", "a.jsonl.gz: cannot be read"),
        ("a.tsv", "a\tb\n1\t2\n3\n", "a.tsv, line 3: 1 fields, but there are 2 columns"),
        ("a.csv", "a,a\n1,2\n", "a.csv: the column name 'a' occurs more than once"),
        ("a.csv", 'a,b\n1,"2\n3,4\n', "a.csv, line 3: not CSV"),
        ("a.parquet", b"PAR1PAR1", "a.parquet: not a readable parquet file"),
        ("a.json", '[{"a": 1}]', "a.json: is one JSON document, which cannot be streamed; convert it to .jsonl"),
        ("a.xlsx", "x", "a.xlsx: unknown file format"),
    ],
)
def test_a_broken_file_is_named_with_the_place(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    with pytest.raises(BALoraError, match=message):
        list(stream_table(path))


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([], {}, "train.jsonl: no rows"),
        ([{"question": "x"}], {}, "train.jsonl: no standard form among the columns 'question'"),
        ([{"a": "x"}], {"prompt_column": "a", "completion_column": "b"}, "no column 'b'; it has 'a'"),
        ([{"text": " "}], {}, "train.jsonl, row 1, field 'text': is empty"),
        ([{"text": "x"}], {"prompt_template": "{prompt}"}, "prompt_template is for prompts that are strings"),
    ],
)
def test_errors_of_the_first_row_raise_at_once(tmp_path, rows, columns, message):
    with pytest.raises(BALoraError, match=message):
        streamed(jsonl(tmp_path, *rows), **columns)


@pytest.mark.parametrize(
    ("good", "bad", "columns", "message"),
    [
        ({"text": "x"}, {"text": 3}, {}, "train.jsonl, row 3, field 'text': expected text, found 3"),
        ({"text": "x"}, {"other": "y"}, {}, "row 3, field 'text': is missing"),
        ({"messages": CHAT}, {"messages": [{"role": "bot", "content": "x"}]}, {}, "row 3, .* message 1: role 'bot'"),
        ({"prompt": "x", "completion": "y"}, {"prompt": CHAT, "completion": "y"}, {}, "row 3, field 'prompt': exp"),
        ({"prompt": CHAT, "completion": CHAT}, {"prompt": CHAT, "completion": "y"}, {}, "row 3, .* a list of mess"),
        (
            {"q": "x", "a": "1"},
            {"q": "y", "a": ""},
            {"prompt_column": "q", "completion_column": "a"},
            "row 3, field 'a': is em",
        ),
        ({"text": "x"}, {"text": "\ud800"}, {}, "row 3: holds a value no table can hold"),
    ],
)
def test_an_invalid_row_raises_when_it_is_read(tmp_path, good, bad, columns, message):
    rows = iter(streamed(jsonl(tmp_path, good, good, bad), **columns))
    assert [next(rows)[ROW], next(rows)[ROW]] == [1, 2]
    with pytest.raises(BALoraError, match=message):
        next(rows)


def test_drop_empty_keeps_the_numbers_of_the_other_rows(tmp_path):
    rows = [{"q": None, "a": "1"}, {"q": "x", "a": "1"}, {"q": "y", "a": " "}, {"q": "z", "a": "2"}]
    columns = {"prompt_column": "q", "completion_column": "a", "drop_empty": True}
    stream = streamed(jsonl(tmp_path, *rows, then="poison"), max_rows=2, **columns)
    assert list(stream) == [
        {"prompt": "x", "completion": " 1", ROW: 2},
        {"prompt": "z", "completion": " 2", ROW: 4},
    ]
    with pytest.raises(BALoraError, match="no row is left whose q and a are not empty"):
        streamed(jsonl(tmp_path, rows[0], rows[2]), **columns)


def test_no_row_is_read_before_it_is_needed(tmp_path):
    path = jsonl(tmp_path, *({"text": f"{i}"} for i in range(20)), then="poison")
    assert [row["text"] for row in streamed(path, max_rows=20)] == [f"{i}" for i in range(20)]
    rows = streamed(path)
    assert len(list(islice(rows.shuffle(seed=0, buffer_size=8), 12))) == 12
    with pytest.raises(BALoraError, match="line 21: not JSON"):
        list(rows)


class Broken(Exception):
    pass


def hub_rows(texts, error=None):
    yield from ({"text": text} for text in texts)
    if error is not None:
        raise error


def test_hub_rows_and_errors_of_the_network(monkeypatch):
    rows = IterableDataset.from_generator(hub_rows, gen_kwargs={"texts": ("a", "b"), "error": Broken("gone")})
    asked = []

    def load_dataset(path, name=None, split=None, streaming=False):
        asked.append((path, name, split, streaming))
        return rows if split else IterableDatasetDict(train=rows, test=rows)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    stream = stream_causal_lm_rows(stream_table("owner/data", name="config", split="train"), source="owner/data")
    assert [row["text"] for row in islice(stream, 2)] == ["a", "b"]
    with pytest.raises(BALoraError, match="owner/data, row 3: cannot be read: Broken: gone"):
        list(stream)
    assert asked == [("owner/data", "config", "train", True)]
    with pytest.raises(BALoraError, match="has the splits train, test; choose one with `split`"):
        stream_table("owner/data")
    whole = IterableDataset.from_generator(hub_rows, gen_kwargs={"texts": ("a", "b")})
    assert read_whole(whole).to_list() == [{"text": "a"}, {"text": "b"}]


def tokens(lengths):
    yield from ({"input_ids": [7] * length, ROW: row} for row, length in enumerate(lengths, start=1))


def passes(lengths, buffer_size=None, **settings) -> Passes:
    rows = IterableDataset.from_generator(tokens, gen_kwargs={"lengths": tuple(lengths)})
    if buffer_size is not None:
        rows = rows.shuffle(seed=3, buffer_size=buffer_size)
    return Passes(rows, source="train.jsonl", **{"max_length": None, "context": None, **settings})


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 12), buffer_size=st.integers(1, 15))
def test_every_pass_has_every_row_once_in_a_new_order(rows, buffer_size):
    endless = passes([1] * rows, buffer_size)
    seen = [row[ROW] for row in islice(endless, 4 * rows)]
    parts = [seen[start : start + rows] for start in range(0, 4 * rows, rows)]
    assert all(sorted(part) == [*range(1, rows + 1)] for part in parts)
    if rows > 8 and buffer_size > 4:
        assert len({tuple(part) for part in parts}) > 1
    assert [row[ROW] for row in islice(endless, 4 * rows)] == seen


def test_without_a_buffer_every_pass_is_in_order():
    assert [row[ROW] for row in islice(passes([1, 1, 1]), 7)] == [1, 2, 3, 1, 2, 3, 1]


def test_a_row_beyond_the_context_raises_when_it_is_read():
    rows = iter(passes([4, 5, 6], context=5))
    assert [next(rows)[ROW], next(rows)[ROW]] == [1, 2]
    with pytest.raises(BALoraError, match=r"jsonl, row 3: 6 tokens, but the model's context is 5; set max_length"):
        next(rows)
    assert len(list(islice(passes([4, 6], context=6, max_length=6), 4))) == 4


def test_a_stream_without_rows_after_truncation_raises():
    with pytest.raises(BALoraError, match=r"max_length: 2 leaves nothing to learn in any row of train\.jsonl"):
        next(iter(passes([], max_length=2)))
