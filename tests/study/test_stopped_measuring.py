"""A run that stops while it is measured is measured again by the same command, and trained no further."""

import json
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from tiny_folder import tiny
from transformers import Trainer

from balora.cli import main
from balora.study import evaluate as evaluate_module
from balora.study import run as run_module

KILLED = """
import os, signal, sys
from balora.cli import main
from balora.study import run
run.measure = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@pytest.fixture
def arguments(tmp_path) -> list[str]:
    tiny(tmp_path / "model")
    rows = [{"prompt": f"who sat on a {where} ?", "completion": "cat"} for where in ("mat", "hill")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    recipe = {"model_name_or_path": str(tmp_path / "model"), "train_file": str(tmp_path / "rows.jsonl")}
    recipe |= {"validation_file": str(tmp_path / "rows.jsonl"), "max_steps": 2, "logging_steps": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return ["train", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "out")]


def raises(error: BaseException):
    def measure(*_: object) -> None:
        raise error

    return measure


def logged(history) -> list[float]:
    return [row["loss"] for row in json.loads(history.read_text()) if "loss" in row]


def resumes(arguments: list[str], tmp_path, monkeypatch, file: str = "adapter_model") -> None:
    """Check that the weights are there, that the same command only measures them, and that nothing is lost."""
    weights, history = tmp_path / "out" / f"{file}.safetensors", tmp_path / "out" / "history.json"
    kept, losses = weights.read_bytes(), logged(history)
    monkeypatch.setattr(Trainer, "training_step", lambda *_, **__: pytest.fail("trained again"))
    assert main(arguments) == 0
    assert weights.read_bytes() == kept
    assert logged(history) == losses
    assert len(losses) == 2
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"eval_loss", "kl_to_base"} <= result["metrics"].keys()
    assert result["train_seconds"] > 0
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(("method", "file"), [("ba-lora", "adapter_model"), ("full", "model")])
def test_ctrl_c_while_measuring_keeps_what_was_trained(method, file, arguments, tmp_path, monkeypatch, capsys):
    arguments += ["--method", method, *(["--wise_ft", "0.5"] if method == "ba-lora" else [])]
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure", raises(KeyboardInterrupt()))
        assert main(arguments) == 128 + signal.SIGINT
    said = " ".join(capsys.readouterr().err.split())
    assert f"what was trained is saved in {tmp_path / 'out'}" in said
    assert "measures it without training again" in said
    assert not (tmp_path / "out" / "result.json").exists()
    resumes(arguments, tmp_path, monkeypatch, file)


def test_a_kill_while_measuring_keeps_what_was_trained(arguments, tmp_path, monkeypatch):
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    resumes(arguments, tmp_path, monkeypatch)


def test_measuring_without_memory_resumes_with_a_smaller_batch(arguments, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure", raises(torch.OutOfMemoryError("CUDA out of memory")))
        assert main(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "out of device memory while measuring: lower per_device_eval_batch_size (16 now)" in said
    assert f"saved in {tmp_path / 'out'}, and the same command measures it without training again" in said
    resumes([*arguments, "--per_device_eval_batch_size", "2"], tmp_path, monkeypatch)


def test_without_checkpoints_the_saved_adapter_is_evaluated(arguments, tmp_path, monkeypatch, capsys):
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["training_arguments"] = {"save_strategy": "no"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "measure", raises(KeyboardInterrupt()))
        assert main(arguments) == 128 + signal.SIGINT
    said = " ".join(capsys.readouterr().err.split())
    assert f"measure it with `balora evaluate --adapter {tmp_path / 'out'}`" in said
    monkeypatch.setattr(evaluate_module, "measure", raises(torch.OutOfMemoryError("out of memory")))
    assert main(["evaluate", arguments[1], "--adapter", str(tmp_path / "out")]) == 2
    assert "lower per_device_eval_batch_size (16 now); the same command" in " ".join(capsys.readouterr().err.split())
