"""Noise end to end: a classifier, a causal model with bias benchmarks, a baseline with a separate teacher."""

import json

import pytest
import torch
import transformers as hf
import yaml
from tiny_models import word_tokenizer

from balora.cli import main
from balora.report import read_results

WORDS = ["a", "b", "c", "d"]


def run(settings: dict, tmp_path, command: str = "compare") -> int:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return main([command, str(tmp_path / "recipe.yaml")])


@pytest.fixture
def classes(tmp_path):
    rows = [{"sentence": f"{WORDS[i % 3]} {WORDS[i % 3]} d", "label": i % 2} for i in range(40)]
    for name, part in {"train": rows[:28], "dev": rows[28:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer = word_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    bert = hf.BertModel(hf.BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=32, pad_token_id=0))
    for part in (bert, tokenizer):
        part.save_pretrained(tmp_path / "bert")
    return {
        "name": "classes",
        "model_name_or_path": str(tmp_path / "bert"),
        "output_dir": str(tmp_path / "out"),
        "label_column": "label",
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "dev.jsonl"),
        "seeds": [1],
        "r": 2,
        "max_steps": 4,
        "learning_rate": 0.01,
        "training_arguments": {"use_cpu": True},
    }


def test_a_classifier_and_a_baseline_under_noise(classes, tmp_path):
    noise = {"noise_kinds": ["token", "embedding"], "noise_levels": [0.2, 0.6]}
    assert run(classes | noise | {"methods": ["ba-lora", "full"]}, tmp_path) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    for method in ("ba-lora", "full"):
        found = json.loads((tmp_path / f"out/runs/{method}-seed1/noise.json").read_text())
        assert {kind: list(levels) for kind, levels in found.items()} == {
            "token": ["0.0", "0.2", "0.6"],
            "embedding": ["0.0", "0.2", "0.6"],
        }
        for kind, levels in found.items():
            assert levels["0.0"]["stability"] == 1
            mean = (levels["0.2"]["stability"] + levels["0.6"]["stability"]) / 2
            assert runs[method].metrics[f"stability_{kind}"] == pytest.approx(mean)
            # Student and teacher read the same noise, in one model or in two, so only training makes them differ.
            shifts = [levels[level]["representation_shift"] for level in ("0.0", "0.6")]
            assert 0 < shifts[1] < 1.2 * shifts[0], (method, kind)
    assert "classes: token noise" in (tmp_path / "out/report.html").read_text()


def test_bias_is_measured_under_noise_too(tmp_path, data_dir, models_dir):
    (tmp_path / "texts.jsonl").write_text('{"text": "once upon a time there was a little girl"}\n' * 4)
    settings = {
        "output_dir": str(tmp_path / "out"),
        "method": "lora",
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(tmp_path / "texts.jsonl"),
        "validation_file": str(tmp_path / "texts.jsonl"),
        "target_modules": ["q_proj"],
        "max_steps": 1,
        "noise_kinds": ["token"],
        "noise_levels": [0.5],
        "benchmarks": {"winobias": {"folder": str(data_dir / "winobias"), "max_samples": 8}},
        "training_arguments": {"use_cpu": True},
    }
    assert run(settings, tmp_path, "train") == 0
    found = json.loads((tmp_path / "out/noise.json").read_text())["token"]
    metrics = json.loads((tmp_path / "out/result.json").read_text())["metrics"]
    assert found["0.0"]["winobias_bias_score"] == pytest.approx(metrics["winobias_bias_score"])
    assert found["0.5"]["winobias_bias_score"] != found["0.0"]["winobias_bias_score"]
    assert metrics["stability_token"] == found["0.5"]["stability"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [({"noise_kinds": ["word"]}, "noise_kinds: unknown 'word'"), ({"noise_levels": [0.0]}, "noise_levels")],
)
def test_wrong_noise_settings_are_refused(classes, tmp_path, capsys, change, message):
    assert run(classes | change, tmp_path) == 2
    assert message in capsys.readouterr().err
