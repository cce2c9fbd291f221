"""Text-to-text rows in T5's form, and their tokens: texts are truncated only on request."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import word_tokenizer

from balora.data import load_table, to_classification_rows, to_text_to_text_rows, tokenize_seq2seq
from balora.data.text_to_text import number_as_text
from balora.errors import BALoraError

ROWS = Dataset.from_dict({"prompt": ["a b c", "b"], "completion": [" c b a", "c"]})


def test_pairs_become_inputs_of_t5_and_class_names():
    table = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": ["same", "other"]})
    rows, names = to_classification_rows(table, source="x")
    text = to_text_to_text_rows(rows, names, task="mrpc", fields=["sentence1", "sentence2"])
    assert text["prompt"][:] == ["mrpc sentence1: a sentence2: c", "mrpc sentence1: b sentence2: d"]
    assert text["completion"][:] == ["same", "other"]
    assert text.column_names == ["prompt", "completion"]


def test_fields_are_in_alphabetical_order_with_their_texts():
    rows = Dataset.from_dict({"text": ["it rains"], "text_pair": ["it is wet"], "label": [0]})
    text = to_text_to_text_rows(rows, ["entailment", "neutral"], task="mnli", fields=["premise", "hypothesis"])
    assert text["prompt"][:] == ["mnli hypothesis: it is wet premise: it rains"]


def test_a_single_text_and_names_given():
    table = Dataset.from_dict({"sentence": ["good", "bad"], "label": [1, 0]})
    rows, names = to_classification_rows(table, source="x", label_names=["negative", "positive"])
    text = to_text_to_text_rows(rows, names, task="sst2", fields=["sentence"])
    assert text[:] == {"prompt": ["sst2 sentence: good", "sst2 sentence: bad"], "completion": ["positive", "negative"]}


@pytest.mark.parametrize("fields", [[], ["sentence1"], ["a", "b", "c"]])
def test_each_text_needs_its_field(fields):
    rows = Dataset.from_dict({"text": ["a"], "text_pair": ["b"], "label": [0]})
    with pytest.raises(BALoraError, match=r"fields: .*, but the texts of a row are text and text_pair; name each"):
        to_text_to_text_rows(rows, ["x", "y"], task="mrpc", fields=fields)


def test_regression_targets_are_numbers_in_steps_of_a_fifth():
    rows = Dataset.from_dict({"text": ["a"] * 5, "label": [0.0, 2.57, 5.0, 3.25, -0.05]})
    text = to_text_to_text_rows(rows, [], task="stsb", fields=["sentence1"])
    assert text["completion"][:] == ["0.0", "2.6", "5.0", "3.2", "0.0"]


@given(st.floats(-100, 100))
def test_numbers_are_rounded_to_the_nearest_fifth(value):
    text = number_as_text(value)
    assert text.partition(".")[2] in ("0", "2", "4", "6", "8")
    assert abs(float(text) - value) <= 0.1 + 1e-9


def test_real_pairs_and_scores(data_dir):
    table = load_table(str(data_dir / "glue" / "STS-B" / "dev.tsv"))
    rows, names = to_classification_rows(table, source="STS-B", label_column="score")
    text = to_text_to_text_rows(rows, names, task="stsb", fields=["sentence1", "sentence2"])
    assert set(text["completion"][:]) <= {f"{n / 5:.1f}" for n in range(26)}
    first = table[0]
    assert text["prompt"][0] == f"stsb sentence1: {first['sentence1']} sentence2: {first['sentence2']}"


@pytest.mark.parametrize("closes", [True, False])
def test_targets_end_in_the_end_of_text_for_every_tokenizer(closes):
    tokenizer = word_tokenizer(closes=closes)
    tokens = tokenize_seq2seq(ROWS, tokenizer, source="x")
    assert tokens.column_names == ["input_ids", "attention_mask", "labels"]
    assert tokenizer.batch_decode(tokens["labels"][:]) == ["c b a </s>", "c </s>"]
    assert tokenizer.batch_decode(tokens["input_ids"][:]) == (["a b c </s>", "b </s>"] if closes else ["a b c", "b"])
    assert [len(mask) for mask in tokens["attention_mask"]] == [len(ids) for ids in tokens["input_ids"]]


@pytest.mark.parametrize("closes", [True, False])
@pytest.mark.parametrize(("limit", "kept"), [(2, 1), (3, 2), (4, 3), (9, 3)])
def test_a_truncated_target_keeps_its_end(closes, limit, kept):
    tokenizer = word_tokenizer(closes=closes)
    tokens = tokenize_seq2seq(ROWS, tokenizer, source="x", max_target_length=limit)
    assert tokenizer.decode(tokens["labels"][0]) == " ".join([*["c", "b", "a"][:kept], "</s>"])
    assert len(tokens["labels"][0]) <= limit
    assert len(tokens["input_ids"][0]) == 3 + closes, "the prompt has a limit of its own"


def test_a_prompt_is_cut_where_max_length_says():
    tokens = tokenize_seq2seq(ROWS, word_tokenizer(), source="x", max_length=2)
    assert [len(ids) for ids in tokens["input_ids"]] == [2, 2]
    assert len(tokens["labels"][0]) == 4


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"context": 3}, "x, row 1: 4 tokens, but the model's context is 3; set max_length: 3 to truncate"),
        (
            {"context": 3, "max_length": 3},
            "x, row 1: 4 tokens, but the model's context is 3; set max_target_length: 3 to truncate",
        ),
        ({"context": 8, "max_length": 9}, "max_length: 9 is beyond the model's context of 8"),
        ({"context": 8, "max_target_length": 9}, "max_target_length: 9 is beyond the model's context of 8"),
        ({"max_length": 1}, "max_length: 1 leaves no room for text beside 1 special tokens"),
        ({"max_target_length": 1}, "max_target_length: 1 leaves no room for text beside 1 special tokens"),
    ],
)
def test_lengths_that_do_not_fit_raise(limits, message):
    with pytest.raises(BALoraError, match=message):
        tokenize_seq2seq(ROWS, word_tokenizer(), source="x", **limits)


@pytest.mark.parametrize(
    "rows",
    [
        {"text": ["a"]},
        {"messages": [[{"role": "user", "content": "a"}]]},
        {"prompt": [[{"role": "user", "content": "a"}]], "completion": [[{"role": "assistant", "content": "a"}]]},
    ],
)
def test_rows_of_another_form_raise(rows):
    with pytest.raises(BALoraError, match="x: a sequence-to-sequence model takes a prompt and a completion"):
        tokenize_seq2seq(Dataset.from_dict(rows), word_tokenizer(), source="x")
