"""Tokens that were added to a tokenizer whose model has no embeddings for them."""

import json

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from tiny_folder import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.cli import main
from balora.study.model_and_data import ModelAndData

REMEDY = "call model.resize_token_embeddings("


@pytest.fixture
def base(tmp_path):
    tiny(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.add_tokens(["<call>", "<image>"])
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def train(base, tmp_path, completions: list[str], *arguments: str, command: str = "train", **settings) -> int:
    rows = [{"prompt": "who sat on a mat ?", "completion": completion} for completion in completions]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"name": "tiny", "method": "full", "model_name_or_path": str(base), "max_steps": 1}
    recipe |= {"train_file": str(tmp_path / "rows.jsonl"), "validation_file": str(tmp_path / "rows.jsonl")}
    recipe |= {"output_dir": str(tmp_path / "out"), "training_arguments": {"use_cpu": True}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | settings))
    return main([command, str(tmp_path / "recipe.yaml"), *arguments])


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
    assert "'<call>' (in the text '" in message
    assert REMEDY in message


def test_a_stream_names_the_token_without_embedding(base, tmp_path, capsys):
    assert train(base, tmp_path, ["cat <call>"], streaming=True, validation_file=None) == 2
    message = capsys.readouterr().err
    assert "'<call>' (in the text '" in message
    assert REMEDY in message
    assert "Traceback" not in message


def test_an_anchor_file_is_checked_before_a_model_is_loaded(base, tmp_path, capsys, monkeypatch):
    (tmp_path / "anchors.jsonl").write_text(json.dumps({"text": "a cat <image> sat on a mat"}) + "\n")
    monkeypatch.setattr(ModelAndData, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    anchors = {"method": "lora+anchors", "anchor_file": str(tmp_path / "anchors.jsonl")}
    assert train(base, tmp_path, ["cat", "dog"], **anchors) == 2
    assert "'<image>' (row 1 of anchor_file" in capsys.readouterr().err


def test_a_benchmark_is_checked_before_a_model_is_loaded(base, tmp_path, capsys, monkeypatch):
    items = [{"question": "who sat ?", "answer": "#### 1"}, {"question": "who <call> sat ?", "answer": "#### 1"}]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    monkeypatch.setattr(ModelAndData, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert train(base, tmp_path, ["cat"], benchmarks={"gsm8k": {"file": str(tmp_path / "gsm8k.jsonl")}}) == 2
    message = capsys.readouterr().err
    assert "benchmarks: gsm8k: the model: " in message
    assert "'<call>' (row 2 of its questions) has none" in message


def test_an_evaluation_names_a_token_beyond_a_shrunk_vocabulary(tmp_path, capsys):
    tiny(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(20)  # "where" is the 17th word, "late" the 25th
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    for number, (completion, status) in enumerate({"dog": 0, "late": 2}.items()):
        arguments = ["--adapter", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / f"out{number}")]
        assert train(tmp_path / "base", tmp_path, [completion], *arguments, command="evaluate") == status
    message = capsys.readouterr().err
    assert "'late' (in the text '" in message
    assert "the model 20 embeddings" in message
