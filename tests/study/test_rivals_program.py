"""Rivals from a recipe: what each is fed with, and one clear error where that is missing."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from tiny_folder import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.adapters.initialization import corda_factors
from balora.cli import main
from balora.report import read_results

TEXTS = ["the cat sat on a mat", "the dog ran", "who", "he said that she was late and so the dog sat"] * 3


@pytest.fixture
def settings(tmp_path) -> dict:
    tiny(tmp_path / "model")
    rows = [
        {"prompt": f"who sat on {where} ?", "completion": who} for where in ("mat", "hill") for who in ("cat", "dog")
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return {
        "model_name_or_path": str(tmp_path / "model"),
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "train.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "seeds": [1],
        "r": 4,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "training_arguments": {"use_cpu": True},
    }


def program(tmp_path: Path, command: str, settings: dict) -> int:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return main([command, str(recipe)])


def failing(tmp_path: Path, settings: dict, capsys, command: str = "train") -> str:
    assert program(tmp_path, command, settings) == 2
    assert not list(Path(settings["output_dir"]).glob("**/*.safetensors"))
    return capsys.readouterr().err


def check_trained(tmp_path: Path, methods: list[str]) -> None:
    """Check that each method learned something, and that stock PEFT loads what it saved."""
    runs = {run.method: run for run in read_results(tmp_path / "out" / "results.json")}
    assert list(runs) == ["pretrained", *methods]
    for method in methods:
        assert runs[method].metrics["kl_to_base"] > 0, method
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        PeftModel.from_pretrained(base, tmp_path / "out" / "runs" / f"{method}-seed1")


def test_corda_and_lora_null_start_from_the_texts_of_the_recipe(settings, tmp_path):
    methods = ["corda", "lora-null", "lora-null-v2", "oplora", "corda+reg"]
    settings |= {"methods": methods, "corda_method": "kpm", "knowledge_file": str(tmp_path / "texts.jsonl")}
    assert program(tmp_path, "compare", settings | {"oplora_k": 3, "start_batches": 2}) == 0
    check_trained(tmp_path, methods)

    # CorDA's start, recomputed from the first two batches of four texts, without the one of a single token.
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    seen = []
    layer = base.model.layers[1].mlp.down_proj
    layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0].detach()))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in [text for text in TEXTS if " " in text][:8]:
        base(**tokenizer(text, return_tensors="pt"))
    covariance = torch.stack([(x / x.max().abs()).T @ (x / x.max().abs()) for x in seen]).mean(0)
    a, b = corda_factors(layer.weight, covariance, 4, corda_method="kpm")
    adapter = PeftModel.from_pretrained(base, tmp_path / "out" / "runs" / "corda-seed1")
    saved = {side: getattr(layer_of(adapter), f"lora_{side}")["default"].weight.detach() for side in "AB"}
    torch.testing.assert_close(saved["B"][:, 4:] @ saved["A"][4:], -b @ a, rtol=0, atol=1e-5)


def layer_of(adapter: PeftModel) -> torch.nn.Module:
    return adapter.base_model.model.model.layers[1].mlp.down_proj


def test_texts_that_the_model_generates_serve_too(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    own = {"methods": ["lora-null"], "knowledge_file": "anchors", "anchor_samples": 12, "anchor_length": 9}
    assert program(tmp_path, "compare", settings | own) == 0
    check_trained(tmp_path, ["lora-null"])
    assert list((tmp_path / "cache" / "anchors").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"method": "lora-null"}, "knowledge_file: missing; lora-null keeps what the texts in it use"),
        ({"method": "corda", "corda_method": "kpm"}, "knowledge_file: missing; corda keeps"),
        ({"method": "corda", "knowledge_file": "train.jsonl"}, "knowledge_file: .* has no column 'text'"),
        (
            {"method": "lora", "knowledge_file": "texts.jsonl"},
            "knowledge_file: .*needs method corda, lora",
        ),
        (
            {"method": "lora-ga", "knowledge_file": "texts.jsonl"},
            "knowledge_file: .*needs method corda, lora",
        ),
        ({"method": "lora-null", "knowledge_file": "absent.jsonl"}, "absent.jsonl"),
        ({"method": "lora-null", "knowledge_file": "texts.jsonl", "anchor_length": 9}, "anchor_length: .*anchors"),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_missing_and_unused_texts_are_named(own, message, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, failing(tmp_path, settings | own, capsys))


def test_methods_of_the_loss_train_from_a_recipe(settings, tmp_path):
    methods = ["dft", "asft", "sft+kl"]
    assert program(tmp_path, "compare", settings | {"methods": methods}) == 0
    check_trained(tmp_path, methods)
    saved = {
        method: json.loads((tmp_path / "out" / "runs" / f"{method}-seed1" / "balora_config.json").read_text())
        for method in methods
    }
    assert [saved[method]["task_loss"] for method in methods] == ["dft", "dft", "cross_entropy"]
    assert [saved[method]["consistency_weight"] for method in methods] == [0.0, 0.05, 0.05]
    assert all(saved[method][f"{term}_weight"] == 0 for term in ("diversity", "spectral") for method in methods)


def test_ewc_and_replay_train_from_a_recipe(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    methods = ["lora", "ewc", "self-replay"]
    own = {"methods": methods, "knowledge_file": "anchors", "anchor_samples": 12, "anchor_length": 9}
    own |= {"method_settings": {"ewc": {"ewc_weight": 1000.0}}, "start_batches": 3, "logging_steps": 2}
    assert program(tmp_path, "compare", settings | own) == 0
    check_trained(tmp_path, methods)
    drift = {run.method: run.metrics["kl_to_base"] for run in read_results(tmp_path / "out" / "results.json")}
    assert drift["ewc"] < 0.9 * drift["lora"]
    history = json.loads((tmp_path / "out" / "runs" / "self-replay-seed1" / "history.json").read_text())
    assert any("loss_replay" in row for row in history)


def test_ewc_needs_texts_and_weights_that_it_can_differentiate(settings, tmp_path, capsys):
    assert "knowledge_file: missing; " in failing(tmp_path, settings | {"method": "ewc"}, capsys)
    own = {"method": "dora+reg", "ewc_weight": 1.0, "knowledge_file": str(tmp_path / "texts.jsonl")}
    assert "ewc_weight: dora+reg changes the weights by more" in failing(tmp_path, settings | own, capsys)
    own["method"] = "qlora+reg"
    assert "ewc_weight: a base in 4 bits" in failing(tmp_path, settings | own, capsys)


def test_what_was_learned_is_changed_after_training(settings, tmp_path, capsys):
    names = {"intruders": 0.0, "trim": 0.1, "dare": 0.5}
    variants = {name: {"method": "lora", "after_training": {name: share}} for name, share in names.items()}
    assert program(tmp_path, "compare", settings | {"methods": list(variants), "method_settings": variants}) == 0
    check_trained(tmp_path, list(variants))
    capsys.readouterr()
    for own, message in (
        ({"method": "lora", "after_training": {"ties": 0.1}}, "does not name one change"),
        ({"method": "dora", "after_training": {"trim": 0.1}}, "method 'dora' cannot be averaged"),
        ({"method": "full", "r": 16, "after_training": {"trim": 0.1}}, "'full' is not one"),
        ({"method": "lora", "target_modules": ["embed_tokens"], "after_training": {"trim": 0.1}}, "is a Embedding"),
    ):
        assert message in failing(tmp_path, settings | own | {"output_dir": str(tmp_path / "bad")}, capsys)


def test_sdft_trains_on_what_the_model_wrote(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    assert program(tmp_path, "compare", settings | {"methods": ["lora", "sdft"], "seeds": [1]}) == 0
    check_trained(tmp_path, ["lora", "sdft"])
    lines = (tmp_path / "out" / "runs" / "sdft-seed1" / "rewritten.jsonl").read_text().splitlines()
    assert len(lines) == 16
    assert json.loads(lines[0])["answer"] == "cat"
    assert not (tmp_path / "out" / "runs" / "lora-seed1" / "rewritten.jsonl").exists()
    own = {"method": "sdft", "train_file": str(tmp_path / "texts.jsonl"), "output_dir": str(tmp_path / "bad")}
    assert "rewrite_answers: only prompts with completions" in failing(tmp_path, settings | own, capsys)


def test_counterfactual_rows_and_their_teacher(settings, tmp_path, capsys):
    rows = [{"prompt": "who sat on a mat ?", "completion": who} for who in ("he", "cat", "she")]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    methods = ["lora", "cda", "role-reversal"]
    assert program(tmp_path, "compare", settings | {"methods": methods}) == 0
    check_trained(tmp_path, methods)
    found = {run.method: run.rows["train"] for run in read_results(tmp_path / "out" / "results.json")}
    assert (found["lora"], found["cda"], found["role-reversal"]) == (12, 20, 20)
    saved = json.loads((tmp_path / "out" / "runs" / "role-reversal-seed1" / "balora_config.json").read_text())
    assert (saved["counterfactual_words"], saved["consistency_weight"]) == ("gender", 1.0)
