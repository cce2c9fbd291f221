"""Studies of several tasks end to end: encoders and T5, baselines, imbalance, calibration."""

import json
import re

import pytest
import torch
import transformers as hf
import yaml
from datasets import Dataset
from tiny_models import T5, word_tokenizer

from balora.cli import main
from balora.config.published import PRESETS
from balora.recipe.parse import parse
from balora.report import read_results

WORDS = ["a", "b", "c", "d"]


def rows(count: int) -> list[dict]:
    """Return sentences whose first two words give the class."""
    return [{"sentence": f"{WORDS[i % 3]} {WORDS[i % 3]} d", "label": ["no", "yes"][i % 3 == 1]} for i in range(count)]


@pytest.fixture
def study(tmp_path):
    """Return a recipe of two tasks, classes and scores, for a tiny BERT."""
    tokenizer = word_tokenizer()
    for name, content in {
        "train": rows(48),
        "dev": rows(12),
        "scores": [{"sentence": row["sentence"], "label": float(i % 3) + 0.5} for i, row in enumerate(rows(24))],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    bert = hf.BertModel(hf.BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=32, pad_token_id=0))
    for folder, model in {"bert": bert, "t5": hf.T5ForConditionalGeneration(_t5(len(tokenizer)))}.items():
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    return {
        "name": "two tasks",
        "model_name_or_path": str(tmp_path / "bert"),
        "output_dir": str(tmp_path / "out"),
        "label_column": "label",
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "dev.jsonl"),
        "tasks": {"classes": {}, "scores": {"train_file": str(tmp_path / "scores.jsonl"), "validation_share": 0.25}},
        "methods": ["lora", "ba-lora"],
        "seeds": [1],
        "r": 2,
        "max_steps": 6,
        "learning_rate": 0.02,
        "training_arguments": {"use_cpu": True},
    }


def _t5(vocabulary: int) -> hf.T5Config:
    return hf.T5Config(**{**T5, "vocab_size": vocabulary, "dropout_rate": 0.0})


def run(settings: dict, tmp_path, command: str = "compare", *arguments: str) -> int:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return main([command, str(tmp_path / "recipe.yaml"), *arguments])


def test_two_tasks_side_by_side(study, tmp_path, capsys):
    assert run(study, tmp_path, "compare", "--jobs", "2") == 0
    runs = {(run.task, run.method): run for run in read_results(tmp_path / "out/results.json")}
    assert set(runs) == {(task, method) for task in study["tasks"] for method in ("pretrained", "lora", "ba-lora")}
    assert {"accuracy", "matthews", "kl_to_base"} <= runs["classes", "lora"].metrics.keys()
    assert {"pearson", "mse_to_base"} <= runs["scores", "lora"].metrics.keys()
    printed = capsys.readouterr().out
    assert "classes (accuracy" in printed
    assert "scores (pearson" in printed
    summary = (tmp_path / "out/summary.md").read_text()
    assert "| method | classes (accuracy ↑) | scores (pearson ↑) | average ↑ | parameters |" in summary
    assert "accuracy against kl_to_base" in summary
    assert "pearson against mse_to_base" in summary
    assert not list((tmp_path / "out").rglob("checkpoint-*"))


def test_each_baseline_trains_the_parameters_of_its_name(study, tmp_path):
    study |= {"tasks": {}, "methods": ["full", "bitfit", "houlsby", "pfeiffer", "adalora", "olora"]}
    study |= {"bottleneck_size": 3, "method_settings": {"full": {"learning_rate": 0.001}}}
    assert run(study, tmp_path) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    counts = {method: run.trainable_parameters for method, run in runs.items()}
    assert counts["pretrained"] == 0
    assert counts["houlsby"] - counts["pfeiffer"] == 2 * 16 * 3 + 16 + 3
    assert counts["bitfit"] < counts["full"]
    for method in ("full", "bitfit", "houlsby", "pfeiffer", "olora"):
        assert runs[method].metrics["kl_to_base"] > 0, method
    saved = tmp_path / "out/runs"
    assert (saved / "houlsby-seed1/trained_parameters.safetensors").exists()
    hf.AutoModelForSequenceClassification.from_pretrained(saved / "full-seed1")
    config = json.loads((saved / "adalora-seed1/adapter_config.json").read_text())
    assert (config["peft_type"], config["target_r"], config["init_r"]) == ("ADALORA", 2, 3)
    assert (config["total_step"], config["tfinal"]) == (6, 1)
    assert config["rank_pattern"]


def test_lora_plus_lora_fa_and_milora_train(study, tmp_path):
    study |= {"tasks": {}, "methods": ["lora", "lora+", "lora-fa", "milora"], "learning_rate": 0.001}
    assert run(study, tmp_path) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    # At B = 0 only B has a gradient, so the first steps go further with sixteen times its learning rate.
    assert runs["lora+"].metrics["kl_to_base"] > 4 * runs["lora"].metrics["kl_to_base"]
    assert runs["lora-fa"].trainable_parameters < runs["lora"].trainable_parameters
    assert runs["milora"].trainable_parameters == runs["lora"].trainable_parameters


def test_structural_regularization_trains_with_the_preset_terms(study, tmp_path):
    structural = {"method": "lora+reg", **{k: v for k, v in PRESETS["structural"].items() if k != "method"}}
    study |= {"tasks": {}, "methods": ["lora", "structural"], "method_settings": {"structural": structural}}
    study |= {"logging_steps": 1, "bias_path_weight": 3.0}
    assert run(study, tmp_path) == 0
    logged = {}
    for method in study["methods"]:
        history = json.loads((tmp_path / f"out/runs/{method}-seed1/history.json").read_text())
        logged[method] = [row for row in history if "loss_task" in row]
        assert logged[method], method
    assert all(row["weight_bias_path"] == 10 and row["loss_bias_path"] > 0 for row in logged["structural"])
    assert all("loss_diversity" not in row for row in logged["structural"])
    assert all("loss_bias_path" not in row for row in logged["lora"])  # whatever the recipe's weights


def test_t5_writes_classes_and_numbers(study, tmp_path):
    study |= {"model_name_or_path": str(tmp_path / "t5"), "task_type": "SEQ_2_SEQ_LM", "methods": ["ba-lora", "full"]}
    study |= {"target_modules": "all-linear", "max_length": 16, "max_target_length": 8}
    assert run(study, tmp_path) == 0
    runs = {(run.task, run.method): run for run in read_results(tmp_path / "out/results.json")}
    for metrics in (runs[key].metrics for key in runs if key[0] == "classes"):
        assert {"eval_loss", "kl_to_base", "accuracy", "unparsed"} <= metrics.keys()
    assert runs["classes", "pretrained"].metrics["kl_to_base"] == 0
    assert runs["classes", "ba-lora"].metrics["kl_to_base"] > 0
    assert runs["classes", "full"].metrics["kl_to_base"] > 0
    assert runs["classes", "ba-lora"].metrics["eval_loss"] < runs["classes", "pretrained"].metrics["eval_loss"]
    assert {"pearson", "unparsed"} <= runs["scores", "ba-lora"].metrics.keys()


def test_a_second_evaluation_set_has_its_own_metrics(study, tmp_path):
    Dataset.from_list(rows(9)).to_json(tmp_path / "other.jsonl")
    study |= {"tasks": {}, "methods": ["lora"], "mismatched_file": str(tmp_path / "other.jsonl")}
    assert run(study, tmp_path) == 0
    metrics = read_results(tmp_path / "out/results.json")[1].metrics
    assert {"accuracy", "accuracy_mismatched", "kl_to_base", "kl_to_base_mismatched"} <= metrics.keys()


def test_a_sweep_has_one_table_and_a_figure_for_each_setting(study, tmp_path):
    study |= {"tasks": {}, "methods": ["lora"], "sweep": {"r": [1, 2]}, "max_steps": 2}
    assert run(study, tmp_path, "sweep") == 0
    runs = read_results(tmp_path / "out/results.json")
    assert [run.method for run in runs] == ["pretrained", "lora r=1", "lora r=2"]
    assert runs[2].trainable_parameters > runs[1].trainable_parameters
    assert (tmp_path / "out/two-tasks-by-r.png").read_bytes().startswith(b"\x89PNG")
    # With one more value, only its run is new.
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    assert run(study | {"sweep": {"r": [1, 2, 4]}}, tmp_path, "sweep") == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert len(read_results(tmp_path / "out/results.json")) == 4


def test_imbalance_is_created_measured_and_drawn(study, tmp_path):
    study |= {"geometry": True, "methods": ["lora"], "validation_file": str(tmp_path / "dev.jsonl")}
    study["tasks"] = {"balanced": {"class_ratio": [1, 1]}, "imbalanced": {"class_ratio": [8, 1]}}
    assert run(study, tmp_path) == 0
    runs = {(run.task, run.method): run.metrics for run in read_results(tmp_path / "out/results.json")}
    measured = {"silhouette", "silhouette_minority", "silhouette_logits", "silhouette_minority_logits"}
    assert all(measured <= metrics.keys() for metrics in runs.values())
    for picture in ("maps-of-the-classes.png", "confusion.png"):
        assert (tmp_path / "out" / picture).read_bytes().startswith(b"\x89PNG")
    assert "Maps of the classes" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("ratio", "message"),
    [([1], "ratio has 1 numbers for 2 classes"), ([1, 0], "every class needs a positive number")],
)
def test_a_wrong_ratio_is_named_before_training(ratio, message, study, tmp_path, capsys):
    assert run(study | {"tasks": {}, "class_ratio": ratio}, tmp_path) == 2
    assert message in capsys.readouterr().err


def test_calibrate_measures_searches_and_writes(study, tmp_path, capsys):
    study |= {"tasks": {"classes": {}}, "task": "classes", "method": "lora+reg", "max_steps": 8}
    extra = ("--factors", "[0.5, 2]", "--calibration_warmup", "0.7", "--calibration_batches", "1")
    assert run(study, tmp_path, "calibrate", *extra) == 0
    printed = capsys.readouterr().out
    assert "× 0.5" in printed
    assert re.search(
        r"common factor: (0.5|2), by accuracy on rows held out from training; what is kept did not", printed
    )
    assert re.search(
        r"kl_to_base is better with .* instead of .*, where accuracy|best with it too \(kl_to_base\)", printed
    )
    assert "pretrained" in printed
    calibrated = yaml.safe_load((tmp_path / "recipe.calibrated.yaml").read_text())
    assert set(calibrated) <= {"consistency_weight", "diversity_weight", "spectral_weight"}
    assert calibrated["consistency_weight"] > 0
    assert f"balora train {tmp_path / 'recipe.yaml'} --recipe {tmp_path / 'recipe.calibrated.yaml'}" in printed
    both, _ = parse("train", [str(tmp_path / "recipe.yaml"), "--recipe", str(tmp_path / "recipe.calibrated.yaml")])
    assert both.consistency_weight == calibrated["consistency_weight"]
    assert both.max_steps == study["max_steps"]
    assert run(study, tmp_path, "calibrate", *extra) == 2
    assert "recipe.calibrated.yaml exists already" in capsys.readouterr().err


def test_calibrate_refuses_a_method_without_regularizers(study, tmp_path, capsys):
    assert run(study | {"tasks": {}, "method": "bitfit"}, tmp_path, "calibrate") == 2
    assert "bitfit has no regularizers" in capsys.readouterr().err
