"""Tokens that were added to a tokenizer whose model has no embeddings for them."""

import json

import pytest
import yaml
from tiny_folder import tiny
from transformers import AutoTokenizer

from balora.cli import main

REMEDY = "call model.resize_token_embeddings("


@pytest.fixture
def base(tmp_path):
    tiny(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["<call>", "<image>"])
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def train(base, tmp_path, completions: list[str], **settings) -> int:
    rows = [{"prompt": "who sat on a mat ?", "completion": completion} for completion in completions]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"name": "tiny", "method": "full", "model_name_or_path": str(base), "max_steps": 1}
    recipe |= {"train_file": str(tmp_path / "rows.jsonl"), "validation_file": str(tmp_path / "rows.jsonl")}
    recipe |= {"output_dir": str(tmp_path / "out"), "training_arguments": {"use_cpu": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | settings))
    return main(["train", str(tmp_path / "recipe.yaml")])


def test_rows_with_a_token_without_embedding_are_refused(base, tmp_path, capsys):
    assert train(base, tmp_path, ["cat", "cat <call>"]) == 2
    message = capsys.readouterr().err
    assert "'<call>' (row 2 of the train rows) has none" in message
    assert REMEDY in message
    assert "Traceback" not in message


def test_texts_for_perplexity_are_checked_too(base, tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a cat <image> sat on a mat"}) + "\n")
    assert train(base, tmp_path, ["cat", "dog"], perplexity_file=str(tmp_path / "texts.jsonl")) == 2
    assert "'<image>' (row 1 of perplexity_file" in capsys.readouterr().err


def test_added_tokens_that_no_row_uses_are_no_error(base, tmp_path):
    assert train(base, tmp_path, ["cat", "dog"]) == 0


def test_an_audit_names_the_token_without_embedding(base, tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a cat <call> sat on a mat"}) + "\n")
    arguments = ["audit", "--model", str(base), "--data_file", str(tmp_path / "texts.jsonl"), "--text_column", "text"]
    assert main([*arguments, "--own_texts", "0", "--output_dir", str(tmp_path / "audit")]) == 2
    message = capsys.readouterr().err
    assert "'<call>' (row 1 of the texts) has none" in message
    assert REMEDY in message
