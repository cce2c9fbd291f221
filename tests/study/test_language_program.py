"""The program on a real language model: 4-bit and data-initialized methods, benchmarks, and errors."""

import json

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from balora import BALoraModel
from balora.cli import main
from balora.recipe.parse import parse
from balora.report import read_results
from balora.study.prepare import prepare


@pytest.fixture
def settings(data_dir, models_dir, tmp_path) -> dict:
    return {
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(data_dir / "gsm8k" / "train.jsonl"),
        "validation_file": str(data_dir / "gsm8k" / "test.jsonl"),
        "prompt_column": "question",
        "completion_column": "answer",
        "prompt_template": "Question: {prompt}\nAnswer:",
        "max_train_samples": 16,
        "max_eval_samples": 4,
        "max_length": 256,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "r": 4,
        "output_dir": str(tmp_path / "out"),
        "training_arguments": {"use_cpu": True},
    }


def program(tmp_path, command: str, settings: dict) -> int:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return main([command, str(recipe)])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["qlora", "qdora+reg", "qpissa", "qba-lora"])
def test_a_base_in_four_bits_is_trained_and_its_adapter_loads(settings, tmp_path, method):
    assert program(tmp_path, "train", settings | {"method": method}) == 0
    config = json.loads((tmp_path / "out" / "balora_config.json").read_text())
    quantization = config["quantization_config"]
    residual = method in ("qpissa", "qba-lora")
    # If Transformers quantizes the base as it loads it, the adapter's settings do not name the quantization.
    assert (quantization is not None) == residual
    if residual:
        assert quantization["bnb_4bit_quant_type"] == "nf4"
        assert quantization["bnb_4bit_use_double_quant"]
    assert (config["consistency_weight"] > 0) == (method in ("qdora+reg", "qba-lora"))
    base = AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"])
    again = BALoraModel.from_pretrained(base, tmp_path / "out")
    assert isinstance(again, PeftModel)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora-ga", "corda+reg"])
def test_methods_initialized_from_data_use_the_recipes_rows(settings, tmp_path, method, capsys):
    wanted = settings | {"methods": [method], "start_batches": 2, "seeds": [1]}
    del wanted["output_dir"]
    assert program(tmp_path, "compare", wanted | {"output_dir": str(tmp_path / "out")}) == 0
    runs = {run.method: run for run in read_results(tmp_path / "out" / "results.json")}
    assert runs[method].metrics["kl_to_base"] > 0
    assert runs["pretrained"].metrics["kl_to_base"] == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
def test_benchmarks_run_after_training_and_save_the_generated_texts(settings, data_dir, tmp_path):
    benchmarks = {
        "gsm8k": {"file": str(data_dir / "gsm8k" / "test.jsonl"), "max_samples": 3, "max_new_tokens": 8},
        "mbpp": {
            "file": str(data_dir / "mbpp" / "mbpp.jsonl"),
            "max_samples": 2,
            "max_new_tokens": 8,
            "confirm_run_unsafe_code": True,
        },
        "wikitext2": {"file": str(data_dir / "wikitext2" / "test.txt"), "max_samples": 2},
        "harness": {"tasks": ["wikitext2_local"], "data_dir": str(data_dir), "limit": 2},
    }
    assert program(tmp_path, "train", settings | {"method": "lora", "benchmarks": benchmarks}) == 0
    metrics = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert metrics["gsm8k_accuracy"] + metrics["gsm8k_unanswered"] <= 1
    assert metrics["mbpp_pass@1"] == 0
    for name in ("word_perplexity", "byte_perplexity"):
        assert metrics[f"wikitext2_{name}"] == pytest.approx(metrics[f"wikitext2_local_{name}"], rel=1e-4)
    kept = [json.loads(line) for line in (tmp_path / "out" / "benchmarks" / "gsm8k.jsonl").read_text().splitlines()]
    assert len(kept) == 3
    assert kept[0]["prompt"].startswith("Question: Janet’s ducks")
    assert kept[0]["prompt"].endswith("\nAnswer:")
    assert kept[0]["answer"] == "18"


@pytest.mark.slow
def test_evaluate_gives_a_saved_adapter_the_metrics_of_its_run(settings, tmp_path, capsys):
    assert program(tmp_path, "train", settings | {"method": "ba-lora"}) == 0
    trained = json.loads((tmp_path / "out" / "result.json").read_text())
    wanted = settings | {"output_dir": str(tmp_path / "again"), "adapter": str(tmp_path / "out")}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({k: v for k, v in wanted.items() if k != "adapter"}))
    command = ["evaluate", str(recipe), "--adapter", wanted["adapter"]]
    assert main(command) == 0
    measured = json.loads((tmp_path / "again" / "result.json").read_text())
    assert measured["metrics"] == pytest.approx(trained["metrics"], rel=1e-5)
    assert measured["trainable_parameters"] == trained["trainable_parameters"]
    assert "kl_to_base" in capsys.readouterr().out
    assert main(command) == 2
    assert "already has a result.json" in capsys.readouterr().err
    beside = [*command, "--output_dir", str(tmp_path / "out")]  # where the adapter was trained
    assert main(beside) == 0
    measured = json.loads((tmp_path / "out" / "evaluation" / "result.json").read_text())
    assert measured["metrics"] == pytest.approx(trained["metrics"], rel=1e-5)
    assert f"result: {tmp_path / 'out' / 'evaluation' / 'result.json'}" in capsys.readouterr().out
    assert main([*command, "--output_dir", "null"]) == 2  # the adapter's folder, which has an evaluation now
    assert "evaluation already has a result.json" in capsys.readouterr().err
    for name in ("balora_config.json", "result.json"):  # what is left is PEFT's
        (tmp_path / "out" / name).unlink()
    assert main([*command, "--output_dir", str(tmp_path / "plain")]) == 0
    plain = json.loads((tmp_path / "plain" / "result.json").read_text())["metrics"]
    assert plain == pytest.approx(trained["metrics"], rel=1e-3)
    nowhere = [*command[:-1], str(tmp_path), "--output_dir", str(tmp_path / "none")]
    assert main(nowhere) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err


def test_empty_rows_raise_or_are_dropped(settings, tmp_path, capsys):
    rows = [{"question": f"how many are {n} and {n}?", "answer": "" if n == 2 else f"{2 * n}"} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {"question": None, "answer": "1"}])))
    own = {"train_file": str(tmp_path / "rows.jsonl"), "max_train_samples": None, "method": "lora"}
    assert program(tmp_path, "train", settings | own) == 2
    assert "row 5, field 'question': is missing" in capsys.readouterr().err
    parsed, _ = parse("train", [str(tmp_path / "recipe.yaml"), "--drop_empty_rows", "true"])
    assert len(prepare(parsed).train) == 3


def test_a_template_of_many_lines_is_read_unchanged(settings, tmp_path):
    template = "Below: a question\n\n### Question:\n{prompt}\n\n### Answer:"
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings | {"prompt_template": template}))
    assert parse("train", [str(tmp_path / "recipe.yaml")])[0].prompt_template == template


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmarks": {"gms8k": {}}}, "benchmarks: unknown 'gms8k'; for this model there are gsm8k"),
        ({"benchmarks": {"gsm8k": {"fil": "x"}}}, "benchmarks: gsm8k: unknown 'fil'; did you mean 'file'"),
        ({"benchmarks": {"gsm8k": {"file": "no.jsonl"}}}, "benchmarks: gsm8k: no.jsonl: no such file"),
        (
            {"benchmarks": {"gsm8k": {"file": "GSM8K", "max_new_tokens": 400}}},
            "400 are beyond the model's context of 512",
        ),
        ({"benchmarks": {"gsm8k": {"file": "GSM8K", "max_samples": "all"}}}, "benchmarks: gsm8k: "),
        ({"benchmarks": {"harness": {"tasks": ["wikitext2_local"]}}}, "data_dir: wikitext2_local reads a file in it"),
        ({"benchmarks": {"humaneval": {"file": "HUMANEVAL"}}}, "humaneval: it runs code that a model wrote"),
        ({"chat_template_path": "none.jinja"}, "chat_template_path: none.jinja: cannot read"),
        ({"method": "qlora", "quantization_config": {"load_in_4bits": True}}, "quantization_config: unknown"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_trained(settings, data_dir, tmp_path, capsys, change, message):
    files = {"GSM8K": data_dir / "gsm8k" / "test.jsonl", "HUMANEVAL": data_dir / "humaneval" / "HumanEval.jsonl.gz"}
    for own in change.get("benchmarks", {}).values():
        if own.get("file") in files:
            own["file"] = str(files[own["file"]])
    assert program(tmp_path, "train", settings | change) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["lora", "ba-lora", "lora+reg"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_activations_are_recomputed_with_gradient_checkpointing(settings, tmp_path, monkeypatch, method, recomputed):
    passes = []
    forward = LlamaAttention.forward

    def counted(self, *args, **kwargs):
        passes.append(torch.is_grad_enabled() and self.training)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaAttention, "forward", counted)
    change = {"method": method, "gradient_checkpointing": recomputed, "max_eval_samples": 2}
    assert program(tmp_path, "train", settings | change) == 0
    steps, depth = 2, 5
    assert sum(passes) == steps * depth * (1 + recomputed)
