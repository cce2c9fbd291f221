"""Properties of every file: written rows are read back; random bytes give a table or a `BALoraError`."""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from balora.data import load_table, to_causal_lm_rows, to_classification_rows
from balora.data.sources import SUFFIXES
from balora.errors import BALoraError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@few
@given(rows=st.lists(st.fixed_dictionaries({"a": TEXT, "b": TEXT}), min_size=1, max_size=5), escaped=st.booleans())
@example(rows=[{"a": "\u2028\x85\x0b\r\n", "b": "\ufeff\0"}], escaped=False)
def test_jsonl_round_trip(tmp_path, rows, escaped):
    path = tmp_path / "a.jsonl"
    path.write_bytes("".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows).encode())
    assert load_table(str(path)).to_list() == rows


@few
@given(rows=st.lists(st.fixed_dictionaries({"a": CELL, "b": CELL}), min_size=1, max_size=5), bom=st.booleans())
@example(rows=[{"a": '"', "b": "\u2028\x85\x0b\ufeff\0"}], bom=False)
def test_tsv_round_trip(tmp_path, rows, bom):
    path = tmp_path / "a.tsv"
    lines = ["a\tb", *(f"{row['a']}\t{row['b']}" for row in rows)]
    path.write_bytes(("\ufeff" * bom + "\n".join(lines)).encode())
    assert load_table(str(path)).to_list() == rows


def complaint_about(path, action):
    """Return the error for the file; errors other than `BALoraError` fail the test."""
    try:
        action(load_table(str(path)), source=str(path))
    except BALoraError as error:
        return str(error)
    return None


def classified(table, *, source):
    first, last = table.column_names[0], table.column_names[-1]
    rows, names = to_classification_rows(table, source=source, text_column=first, label_column=last)
    assert len(rows) == len(table) > 0
    assert not names or set(rows["label"]) <= set(range(len(names)))


def completed(table, *, source):
    first, last = table.column_names[0], table.column_names[-1]
    rows = to_causal_lm_rows(table, source=source, prompt_column=first, completion_column=last)
    assert len(rows) == len(table) > 0


def conversed(table, *, source):
    rows = to_causal_lm_rows(table, source=source, messages_column=table.column_names[0])
    assert len(rows) == len(table) > 0


@pytest.mark.parametrize("suffix", SUFFIXES)
@few
@given(content=st.binary(max_size=60) | st.text(' \t\n\r",:{}[]ab01.\ufeff', max_size=40).map(str.encode))
def test_any_bytes_give_a_table_or_a_clear_error(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    for action in (classified, completed):
        message = complaint_about(path, action)
        assert message is None or str(path) in message


@few
@given(rows=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), JSON), max_size=4))
def test_any_json_gives_a_table_or_a_clear_error(tmp_path, rows):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    for action in (classified, completed, conversed):
        message = complaint_about(path, action)
        assert message is None or str(path) in message
