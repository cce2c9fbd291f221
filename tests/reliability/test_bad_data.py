"""Bad data files, in bytes, structure or values, through every reader: rows or one clear error."""

import gzip
import json
import random
from pathlib import Path

import pytest
from bad_inputs import complaint, encoded, hold, mutated, mutated_bytes, sized
from hypothesis import strategies as st
from right_rows import HOTPOT, MESSAGES, READERS, SQUAD, asked, classified, conversed, written
from tiny_models import word_tokenizer

from balora.counterfactual import read_word_groups
from balora.data import (
    check_lengths,
    hotpotqa_rows,
    load_table,
    squad_rows,
    to_causal_lm_rows,
    to_classification_rows,
    tokenize_seq2seq,
)
from balora.data.sources import SUFFIXES


@st.composite
def files(draw: st.DrawFn, reader: str) -> tuple[str, bytes]:
    """Draw a file's suffix and content: valid rows, changed as structures and as bytes."""
    kinds, suffixes, _ = READERS[reader]
    suffix = draw(st.sampled_from(suffixes))
    rows = mutated(draw(st.sampled_from(kinds)), draw)
    content = written(rows if isinstance(rows, list) else [rows], suffix)
    content = encoded(content, draw) if isinstance(content, str) else content
    if draw(st.booleans()):
        content = mutated_bytes(content, draw)
    if suffix.endswith(".gz"):
        content = mutated_bytes(gzip.compress(content, mtime=0), draw, most=draw(st.sampled_from([0, 0, 1])))
    return suffix, content


@sized(few=40, share=0.06)
@pytest.mark.parametrize("reader", READERS)
def test_a_changed_file_gives_rows_or_one_clear_error(reader, count, tmp_path):
    action = READERS[reader][2]

    def check(file: tuple[str, bytes]) -> str:
        suffix, content = file
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        said = complaint(lambda: action(str(path)), path, "frequency")
        assert path.read_bytes() == content
        if said is None:
            return "read"
        return "refused by row or field" if complaint(lambda: load_table(str(path)), path) is None else "refused whole"

    tally = hold(count, files(reader), check)
    # Changes that break every file would try the first check alone.
    assert tally["refused whole"] < 0.8 * tally.total()
    assert tally["read"] > 0


@sized(few=60, share=0.04)
def test_random_bytes_give_rows_or_one_clear_error(count, tmp_path):
    def check(file: tuple[str, bytes]) -> str:
        suffix, content = file
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        return "read" if complaint(lambda: load_table(str(path)), path) is None else "refused whole"

    hold(count, st.tuples(st.sampled_from(SUFFIXES), st.binary(max_size=200)), check)


@sized(few=60, share=0.04)
def test_a_changed_list_of_words_gives_groups_or_one_clear_error(count, tmp_path):
    path = tmp_path / "words.txt"

    @st.composite
    def lists(draw: st.DrawFn) -> bytes:
        return mutated_bytes(encoded("# ours\nhe, she\nhis, her\nman, woman\n", draw), draw, most=4)

    def check(content: bytes) -> str:
        path.write_bytes(content)
        return "read" if complaint(lambda: read_word_groups(str(path)), path) is None else "refused"

    tally = hold(count, lists(), check)
    assert 0 < tally["refused"] < tally.total()


def test_a_row_of_a_million_words_is_named_before_anything_is_trained(tmp_path):
    path = tmp_path / "a.jsonl"
    long = "a b " * 500_000
    path.write_text("".join(json.dumps({"prompt": p, "completion": "a"}) + "\n" for p in ("a", long)))
    rows = to_causal_lm_rows(load_table(str(path)), source=str(path))
    lengths = [len(word_tokenizer()(prompt)["input_ids"]) for prompt in rows["prompt"]]
    said = complaint(lambda: check_lengths(lengths, source=str(path), max_length=None, context=512), path)
    assert "row 2: 1000001 tokens" in said
    said = complaint(
        lambda: tokenize_seq2seq(rows, word_tokenizer(), source=str(path), context=512, max_target_length=4), path
    )
    assert "row 2" in said
    cut = tokenize_seq2seq(rows, word_tokenizer(), source=str(path), context=512, max_length=512)
    assert [len(ids) for ids in cut["input_ids"]] == [2, 512]


@pytest.mark.parametrize(
    "text", ["a b " * 250_000, "! \" ' ) " * 150_000, " " * 10**6 + "a", "?" * 10**6, "1,000 " * 10**5]
)
def test_readers_take_a_long_row_in_linear_time(text, tmp_path):
    def check(_: int) -> str:
        path = tmp_path / "a.json"
        for rows, read in (
            ([{**HOTPOT[0], "question": text, "context": [["Film", [text]]]}], hotpotqa_rows),
            ([{**SQUAD[0], "context": text, "question": text}], squad_rows),
        ):
            path.write_text(json.dumps(rows))
            complaint(lambda read=read: asked(read)(str(path)), path)
        path.write_text(json.dumps([{**m, "text": text} for m in MESSAGES]))
        complaint(lambda: conversed(str(path)), path)
        for suffix in (".csv", ".tsv", ".txt", ".jsonl"):
            path = tmp_path / f"a{suffix}"
            path.write_text(written([{"text": text, "label": "a"}, {"text": "b", "label": "b"}], suffix))
            complaint(lambda path=path: classified(str(path)), path)
        return "read"

    hold(1, st.just(0), check)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_empty_files_folders_and_missing_files_are_refused(suffix, tmp_path):
    empty, folder = tmp_path / f"empty{suffix}", tmp_path / f"folder{suffix}"
    empty.touch()
    folder.mkdir()
    for path in (empty, folder, tmp_path / f"none{suffix}"):
        assert complaint(lambda path=path: load_table(str(path)), path)


def test_a_label_that_is_not_a_number_is_named_with_its_row(tmp_path):
    path = tmp_path / "a.jsonl"
    for label in ("NaN", "null", '""', "[1]", "1e999"):
        path.write_text(f'{{"text": "a", "label": 0.5}}\n{{"text": "b", "label": {label}}}\n')
        assert "row 2, field 'label'" in complaint(lambda: classified(str(path)), path)


def test_an_error_quotes_only_some_columns_and_labels(tmp_path):
    path: Path = tmp_path / "a.json"
    path.write_text(json.dumps([{f"c{i}": 1 for i in range(300)}]))
    assert "and 280 more" in complaint(lambda: classified(str(path)), path)
    labels = [{"text": "a", "label": random.Random(0).choice("ab") + "x" * 10**6 + str(i)} for i in range(3)]
    path.write_text(json.dumps(labels))
    evaluation = lambda: to_classification_rows(load_table(str(path)), source=str(path), label_names=["no", "yes"])  # noqa: E731
    assert complaint(evaluation, path)
