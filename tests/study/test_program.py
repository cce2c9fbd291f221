"""The program end to end: a study, an interruption, and one clear error for each mistake."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from balora.cli import main
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.report import read_results
from balora.study import run as run_module
from balora.study.model_and_data import ModelAndData
from balora.study.plan import task_recipes, with_held_out_rows

WORDS = ["<unk>", "<s>", "</s>"]
WORDS += re.findall(r"\S+", "the cat dog sat ran on a mat hill yes no who ? where and so")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Save a two-layer Llama with a word-level tokenizer and a context of 32 tokens."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=32
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(WORDS),
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def settings(tiny_model, tmp_path) -> dict:
    """Return the settings of a valid recipe."""
    rows = [
        {"prompt": f"who sat on {where} ?", "completion": who} for where in ("mat", "hill") for who in ("cat", "dog")
    ]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (tmp_path / "story.txt").write_text("the cat sat on a mat and the dog ran\n" * 3)
    return {
        "name": "tiny",
        "methods": ["lora", "ba-lora"],
        "seeds": [1, 2],
        "model_name_or_path": str(tiny_model),
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "eval.jsonl"),
        "perplexity_file": str(tmp_path / "story.txt"),
        "output_dir": str(tmp_path / "out"),
        "r": 4,
        "lora_dropout": 0.1,
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 2,
        "training_arguments": {"use_cpu": True},
    }


def recipe_file(settings: dict, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def failing(settings: dict, tmp_path: Path, capsys, *arguments: str, command: str = "train") -> str:
    """Run a recipe that must fail, and return its one line of error; no file may be left."""
    before = sorted(tmp_path.rglob("*"))
    path = recipe_file(settings, tmp_path)
    assert main([command, path, *arguments]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("balora: error:")]
    assert len(lines) == 1, error
    assert sorted(p for p in tmp_path.rglob("*") if p != Path(path)) == [p for p in before if p != Path(path)]
    return lines[0]


def test_compare_from_recipe_to_report(settings, tmp_path, tiny_model, capsys):
    assert main(["compare", recipe_file(settings, tmp_path), "--seeds", "[1]"]) == 0
    out = tmp_path / "out"
    content = json.loads((out / "results.json").read_text())
    assert [(run["method"], run["seed"]) for run in content["runs"]] == [
        ("pretrained", 1),
        ("lora", 1),
        ("ba-lora", 1),
    ]
    for run in content["runs"]:
        assert set(run) == {
            "method", "seed", "task", "metrics", "train_seconds", "peak_memory_mb", "trainable_parameters",
            "intervals", "rows",
        }  # fmt: skip
        assert {"eval_loss", "perplexity", "kl_to_base", "top1_agreement"} <= run["metrics"].keys()
        assert run["peak_memory_mb"] > 100
    pretrained, lora, ba_lora = read_results(out / "results.json")
    assert pretrained.metrics["kl_to_base"] == 0
    assert pretrained.trainable_parameters == pretrained.train_seconds == 0
    assert lora.trainable_parameters == ba_lora.trainable_parameters > 0
    assert lora.metrics["eval_loss"] < pretrained.metrics["eval_loss"]
    page = (out / "report.html").read_text()
    assert "loss_consistency" in page
    assert "<svg" in page
    assert "ba-lora" in capsys.readouterr().out
    assert "| ba-lora" in (out / "summary.md").read_text()
    assert (out / "tradeoff.png").read_bytes().startswith(b"\x89PNG")

    adapter = out / "runs" / "ba-lora-seed1"
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)
    assert stock.peft_config["default"].r == 8
    assert f"| `kl_to_base` | {ba_lora.metrics['kl_to_base']:.6g} |" in (adapter / "README.md").read_text()

    # The same command again runs nothing; with one more method it runs only that; other settings are refused.
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    assert main(["compare", recipe_file(settings, tmp_path), "--seeds", "[1]"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("result.json")} == stamps
    assert main(["compare", recipe_file(settings, tmp_path), "--seeds", "[1]", "--methods", "[lora, bitfit]"]) == 2
    assert "method: bitfit trains biases and LlamaForCausalLM has none" in capsys.readouterr().err
    assert not (out / "runs" / "bitfit-seed1").exists()
    assert main(["compare", recipe_file(settings, tmp_path), "--seeds", "[1]", "--methods", "[lora, full]"]) == 0
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    runs = read_results(out / "results.json")
    assert [run.method for run in runs] == ["pretrained", "lora", "full"]
    assert runs[2].trainable_parameters > runs[1].trainable_parameters
    assert runs[2].metrics["kl_to_base"] > 0
    AutoModelForCausalLM.from_pretrained(out / "runs" / "full-seed1")
    assert main(["compare", recipe_file(settings, tmp_path), "--seeds", "[1]", "--learning_rate", "0.1"]) == 2
    assert "holds another run, which differs in learning_rate (0.01 there, 0.1 now)" in capsys.readouterr().err


def test_a_study_without_evaluation_data_holds_rows_out_and_says_how_many(settings, tmp_path, capsys):
    settings |= {"validation_file": None, "perplexity_file": None, "methods": ["pissa"], "seeds": [1], "max_steps": 2}
    assert main(["compare", recipe_file(settings, tmp_path)]) == 0
    runs = read_results(tmp_path / "out" / "results.json")
    assert all({"eval_loss", "kl_to_base"} <= run.metrics.keys() for run in runs)
    assert [run.rows for run in runs] == [{"train": 14, "validation": 2}] * 2
    said = capsys.readouterr().err
    train = tmp_path / "train.jsonl"
    line = f"tiny: trains on 14 rows of {train}, evaluates on 2 rows of `validation` (rows held out of {train})"
    assert line in said
    assert "(validation_share: 0.1)" in said
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["validation_share"] == 0.1
    card = (tmp_path / "out/runs/pissa-seed1/README.md").read_text()
    assert f"Measured against the base model on 2 rows of `validation` (rows held out of {train}):" in card


def test_a_study_that_holds_out_nothing_still_writes_a_report(settings, tmp_path, capsys):
    settings |= {"validation_file": None, "perplexity_file": None, "methods": ["pissa"], "seeds": [1], "max_steps": 2}
    assert main(["compare", recipe_file(settings, tmp_path), "--validation_share", "0"]) == 0
    assert [run.metrics for run in read_results(tmp_path / "out" / "results.json")] == [{}, {}]
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert "trains on 16 rows" in (said := capsys.readouterr().err)
    assert "has no rows to evaluate on" in said
    card = (tmp_path / "out/runs/pissa-seed1/README.md").read_text()
    assert "Not measured" in card
    evaluation = ["evaluate", recipe_file(settings, tmp_path), "--output_dir", str(tmp_path / "again")]
    assert main(evaluation) == 2
    assert "there is nothing to measure" in capsys.readouterr().err


def test_rows_are_held_out_only_where_nothing_else_measures_quality(settings):
    named = {"validation_file": "a.jsonl", "perplexity_file": "a.txt", "dataset_name": "hub/set", "world": {},
             "benchmarks": {"gsm8k": {"file": "a"}}, "validation_share": 0.3}  # fmt: skip
    bare = {"model_name_or_path": "m", "train_file": "a.jsonl"}
    for key, value in named.items():
        replaced = {"dataset_name": ["train_file"], "world": [*bare]}.get(key, [])
        own = {name: setting for name, setting in bare.items() if name not in replaced}
        recipe = Recipe(**own, **{key: value})
        assert with_held_out_rows(recipe) == recipe
    assert with_held_out_rows(Recipe(**bare)).validation_share == 0.1
    tasks = {"one": {"train_file": "a.jsonl"}, "two": {"train_file": "b.jsonl", "validation_file": "c.jsonl"}}
    study = with_held_out_rows(Recipe(model_name_or_path="m", tasks=tasks))
    assert [task.validation_share for task in task_recipes(study)] == [0.1, None]
    with pytest.raises(BALoraError, match=r"^validation_file: missing, .* streaming cannot hold out rows"):
        with_held_out_rows(Recipe(**bare, streaming=True, max_steps=1))


def test_a_single_row_cannot_be_held_out(settings, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text('{"prompt": "who ?", "completion": "cat"}\n')
    settings |= {"validation_file": None, "perplexity_file": None}
    assert main(["compare", recipe_file(settings, tmp_path)]) == 2
    assert "has 1 of the rows to split; at least two are needed" in capsys.readouterr().err


def test_quickstart_on_a_tiny_world(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pretrain_steps": 5,
        "train_rows": 40,
        "eval_rows": 20,
    }
    arguments = [f"--world.{knob}={value}" for knob, value in small.items()]
    arguments += ["--methods=[ba-lora]", "--max_steps=3", "--per_device_train_batch_size=4"]
    assert main(["quickstart", f"--output_dir={tmp_path / 'out'}", *arguments]) == 0
    pretrained, ba_lora = read_results(tmp_path / "out" / "results.json")
    measures = {"perplexity", "fact_recall", "attribute_recall", "skew", "task_accuracy", "minority_recall"}
    measures |= {"rare_fact_recall", "fact_recall_gap", "noise_share"}
    for run in (pretrained, ba_lora):
        assert measures | {"eval_loss", "kl_to_base", "top1_agreement"} == run.metrics.keys()
    assert pretrained.metrics["perplexity"] != ba_lora.metrics["perplexity"]
    capsys.readouterr()
    assert main(["quickstart", f"--output_dir={tmp_path / 'out'}", *arguments, "--world.facts=70"]) == 2
    assert "differs in world.facts (64 there, 70 now)" in capsys.readouterr().err


def command_line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "balora.cli", *arguments]


@pytest.mark.parametrize(
    "saving",
    [
        {"packing": True, "max_length": 24},
        {"train_sampling_strategy": "group_by_length"},
        {"bf16": True, "training_arguments": {}},
    ],
)
def test_packing_grouping_and_bf16_train(saving, settings, tmp_path):
    settings |= {"methods": ["ba-lora"], "seeds": [1], "sample_rate": 0.5} | saving
    assert main(["compare", recipe_file(settings, tmp_path)]) == 0
    trained = read_results(tmp_path / "out" / "results.json")[-1]
    assert trained.metrics["kl_to_base"] > 0


@pytest.mark.parametrize(("command", "number"), [("train", signal.SIGTERM), ("compare", signal.SIGINT)])
def test_an_interrupted_run_resumes_to_the_same_adapter(settings, tmp_path, command, number):
    settings |= {"max_steps": 60, "methods": ["ba-lora"], "seeds": [42], "save_steps": 1000}
    path = recipe_file(settings, tmp_path)
    adapters = {}
    for name in ("whole", "cut"):
        out = tmp_path / name
        arguments = [command, path, f"--output_dir={out}"]
        place = out if command == "train" else out / "runs" / "ba-lora-seed42"
        if name == "cut":
            process = subprocess.Popen(command_line(*arguments), stderr=subprocess.PIPE, text=True)
            for line in process.stderr:
                if re.search(r"ba-lora, seed 42: 60 steps", line):
                    break
            time.sleep(0.3)
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait() == 128 + number, rest
            assert "run the same command to resume" in rest
            assert not (place / "result.json").exists()
            assert list(place.glob("checkpoint-*"))
        assert main(arguments) == 0
        adapters[name] = (place / "adapter_model.safetensors").read_bytes()
    assert adapters["whole"] == adapters["cut"]


@pytest.mark.parametrize(("method", "file"), [("ba-lora", "adapter_model"), ("full", "model")])
def test_a_run_stopped_after_its_last_step_trains_no_further_step(settings, tmp_path, monkeypatch, method, file):
    steps = {
        "max_steps": 3,
        "save_steps": 3,
        "logging_steps": 1,
    }  # where Transformers would train one more
    settings |= {"method": method, "lr_scheduler_type": "constant", **steps}
    if method == "full":
        del settings["r"], settings["lora_dropout"]
    path, kept = recipe_file(settings, tmp_path), {}

    def stop(*_):
        raise BALoraError("stopped")

    for name in ("whole", "cut"):
        arguments = ["train", path, f"--output_dir={tmp_path / name}"]
        if name == "cut":
            with monkeypatch.context() as patched:
                patched.setattr(run_module, "measure", stop)
                assert main(arguments) == 2
            assert not (tmp_path / name / "result.json").exists()
        assert main(arguments) == 0
        history = json.loads((tmp_path / name / "history.json").read_text())
        kept[name] = (tmp_path / name / f"{file}.safetensors").read_bytes(), max(row["step"] for row in history)
    assert kept["whole"] == kept["cut"]
    assert kept["whole"][1] == 3


def test_a_nan_loss_stops_with_the_last_good_checkpoint(settings, tmp_path, capsys):
    settings |= {"learning_rate": 1e30, "save_steps": 1, "max_grad_norm": 0.0, "method": "lora"}
    assert main(["train", recipe_file(settings, tmp_path)]) == 2
    error = capsys.readouterr().err
    assert re.search(r"balora: error: step \d+: .*Lower learning_rate", error)
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"method": "ba_lora"}, r"method: unknown method 'ba_lora'; did you mean 'ba-lora'\? There are lora, "),
        ({"methods": ["lora", "lora"]}, r"methods: .* none twice"),
        ({"learnin_rate": 1e-3}, r"unknown key 'learnin_rate'; did you mean 'learning_rate'\?"),
        ({"r": "many"}, r"r: expected a whole number, found many"),
        ({"dtype": "int8"}, r"dtype: expected one of 'float32', 'bfloat16', 'float16', found int8"),
        ({"lr_scheduler_type": "triangle"}, r"lr_scheduler_type: triangle does not fit: .*cosine"),
        ({"modules_to_save": ["haed"]}, r"modules_to_save: 'haed' matches nothing; there are lm_head, model"),
        ({"adapter_arguments": {"rank_pattern": {"q_porj": 4}}}, r"rank_pattern: 'q_porj' matches nothing; .*q_proj"),
        ({"adapter_arguments": {"exclude_modules": ["haed"]}}, r"exclude_modules: 'haed' matches nothing; .*lm_head"),
        ({"adapter_arguments": {"exclude_modules": ".*"}}, r"exclude_modules: no layer is left to adapt"),
        ({"adapter_arguments": {"trainable_token_indices": [999]}}, r"trainable_token_indices: 999 is no token of"),
        ({"adapter_arguments": {"eva_config": {}}}, r"eva_config cannot be set: no method starts as EVA"),
        ({"train_file": "rows.jsonl"}, r"rows.jsonl"),
        ({"model_name_or_path": "no/such-model"}, r"model_name_or_path: 'no/such-model' does not load"),
        ({"prompt_column": "question", "completion_column": "completion"}, r"train.jsonl.*'question'"),
        ({"target_modules": ["q_porj"]}, r"target_modules: 'q_porj' matches nothing; there are .*q_proj"),
        ({"max_length": 64}, r"max_length: 64 is beyond the model's context of 32"),
        ({"output_dir": None}, r"output_dir: missing"),
        ({"model_name_or_path": None}, r"model_name_or_path: missing"),
        ({"train_file": None}, r"train_file, dataset_name: one of the two is missing"),
        ({"training_arguments": {"optimizer": "adam"}}, r"training_arguments: .*optimizer"),
        ({"perplexity_column": "story"}, r"perplexity_column: .*story.txt has no column 'story'; there are text"),
        ({"learning_rate": -1.0}, r"learning_rate: -1.0 is out of range"),
        ({"packing": True, "label_column": "label"}, r"packing: only rows of a causal language model can be joined"),
        ({"packing": True, "max_length": None}, r"packing: rows are joined up to max_length, which is missing"),
        ({"sample_rate": 0.0}, r"sample_rate: 0\.0 is out of range"),
        ({"world": {"fact": 3}}, r"world: unknown key 'fact'; did you mean 'facts'\?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_mistake_in_the_recipe_is_one_clear_line(spoil, message, settings, tmp_path, capsys):
    assert re.search(message, failing(settings | spoil, tmp_path, capsys))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rat": 1}, r"training_arguments: unknown key 'learning_rat'"),
        ({"report_to": "wandb"}, r"report_to: wandb is not installed; install it, or leave it out"),
        ({"report_to": ["none", "codecarbon"]}, r"report_to: codecarbon is not installed"),
        ({"report_to": "wandbb"}, r"report_to: unknown 'wandbb'; there are none, .*wandb"),
        ({"eval_strategy": "sometimes"}, r"eval_strategy: 'sometimes' is unknown; use one of no, steps, epoch"),
        ({"metric_for_best_model": "accuracy"}, r"metric_for_best_model: the best .* set eval_strategy: steps too"),
        ({"load_best_model_at_end": True}, r"load_best_model_at_end: the best .* set eval_strategy: steps too"),
        (
            {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "bleu"},
            r"metric_for_best_model: 'bleu' is not measured during training; use eval_loss$",
        ),
        ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor replaces the loss"),
        ({"loss_type": "dft"}, r"loss_type replaces the loss that the method's terms are added to; leave it out"),
        ({"eval_steps": 2}, r"eval_steps has no effect without eval_strategy; set that too"),
        ({"packing_strategy": "wrapped"}, r"packing_strategy has no effect without packing: true; leave it out"),
        ({"dataset_kwargs": {"skip_prepare_dataset": True}}, r"dataset_kwargs has no effect here; name the columns"),
        ({"eos_token": "mat"}, r"eos_token has no effect here; set the tokenizer's own"),
        ({"torch_compile": True}, r"torch_compile cannot trace .*; set fused_lm_head: false too"),
        ({"deepspeed": "zero.json"}, r"deepspeed needs deepspeed, which is not installed|DeepSpeed"),
        ({"lr_scheduler_kwargs": {"gamma": 1}}, r"lr_scheduler_kwargs: cosine does not fit: .*'gamma'"),
    ],
)
def test_training_arguments_are_checked_before_a_model_is_loaded(
    arguments, message, settings, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(ModelAndData, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    spoilt = settings | {"training_arguments": {"use_cpu": True, **arguments}}
    assert re.search(message, failing(spoilt, tmp_path, capsys).strip())


def test_evaluation_during_training_needs_rows(settings, tmp_path, capsys):
    settings |= {"validation_file": None, "training_arguments": {"use_cpu": True, "eval_strategy": "epoch"}}
    assert "eval_strategy: epoch needs rows to evaluate on" in failing(settings, tmp_path, capsys)


def test_the_best_checkpoint_by_its_loss(settings, tmp_path):
    how = {"eval_strategy": "steps", "eval_steps": 2, "metric_for_best_model": "eval_loss"}
    settings |= {"training_arguments": {"use_cpu": True, **how}, "max_steps": 4, "save_steps": 2}
    assert main(["train", recipe_file(settings, tmp_path)]) == 0
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert sum("eval_loss" in row for row in history) == 2


def test_mistakes_on_the_command_line(settings, tmp_path, capsys):
    assert re.search(r"rr", failing(settings, tmp_path, capsys, "--rr", "4"))
    assert re.search(r"max_steps: expected a whole number", failing(settings, tmp_path, capsys, "--max_steps", "ten"))
    assert main(["tune"]) == 2
    assert "unknown command 'tune'" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml: cannot read this recipe" in capsys.readouterr().err


def test_mistakes_in_the_data(settings, tmp_path, capsys):
    train = tmp_path / "train.jsonl"
    train.write_text("")
    assert "train.jsonl" in failing(settings, tmp_path, capsys)
    train.write_text('{"prompt": "who ?", "completion": "cat"}\n{"prompt": "who ?"')
    assert re.search(r"train.jsonl.*2", failing(settings, tmp_path, capsys))
    train.write_text(json.dumps({"prompt": "the cat sat on " * 20, "completion": "mat"}) + "\n")
    error = failing(settings, tmp_path, capsys)
    assert re.search(r"train.jsonl, row 1: \d+ tokens, but the model's context is 32; set max_length: 32", error)
    train.write_text(json.dumps({"messages": [{"role": "user", "content": "who ?"}]}) + "\n")
    assert "chat rows need a chat template" in failing(settings, tmp_path, capsys)


def test_a_label_out_of_range_is_named(settings, tmp_path, capsys):
    for name, labels in (("train", [0, 1, 1, 0]), ("eval", [0, 2])):
        rows = [{"text": "the cat sat", "label": label} for label in labels]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spoilt = settings | {"label_column": "label", "perplexity_file": None}
    assert re.search(r"eval.jsonl, row 2.*label.*2", failing(spoilt, tmp_path, capsys))


def test_a_folder_with_other_files_is_refused_and_unchanged(settings, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    assert "holds files that no run of balora wrote" in failing(settings, tmp_path, capsys)
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_classification_trains_and_reports(settings, tmp_path):
    rows = [{"text": f"the {who} sat", "label": label} for who, label in (("cat", "feline"), ("dog", "canine"))] * 8
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {"label_column": "label", "perplexity_file": None, "method": "lora+reg", "max_steps": 40}
    assert main(["train", recipe_file(settings, tmp_path)]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["accuracy"] == 1.0
    assert {"f1", "minority_recall", "kl_to_base"} <= result["metrics"].keys()


def test_help_explains_every_setting(capsys, monkeypatch):
    assert main(["--help"]) == 0
    assert "balora compare RECIPE" in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert "Scaling is lora_alpha / r; null for r" in text
    assert "λ1, weight of the divergence from the pretrained model; null as published" in " ".join(text.split())
