"""Every command with all network access blocked: it works and attempts no connection."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from tiny_folder import tiny
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("offline")
    tiny(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    adapter = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(base, adapter).save_pretrained(folder / "adapter")
    rows = [{"prompt": f"who sat on {on} ?", "completion": who} for on in ("mat", "hill") for who in ("cat", "dog")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.txt").write_text("the cat sat on a mat\nhe said that she was late\n")
    recipe = {
        "model_name_or_path": str(folder / "model"), "train_file": str(folder / "rows.jsonl"), "r": 2, "max_steps": 2,
        "validation_file": str(folder / "rows.jsonl"), "perplexity_file": str(folder / "texts.txt"),
        "method": "ba-lora", "methods": ["ba-lora"], "seeds": [1], "training_arguments": {"use_cpu": True},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def arguments(command: str, folder: Path) -> list[str]:
    recipe = str(folder / "recipe.yaml")
    world = "facts: 5, objects: 4, occupations: 2, task_items: 5, train_rows: 16, eval_rows: 8, pretrain_steps: 2"
    shape = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, pretrain_batch_size: 2"
    return {
        "train": ["train", recipe],
        "compare": ["compare", recipe],
        "evaluate": ["evaluate", recipe, f"--adapter={folder / 'adapter'}"],
        "audit": [
            "audit", str(folder / "model"), str(folder / "adapter"), f"--data_file={folder / 'texts.txt'}",
            "--own_texts=2", "--own_length=4",
        ],
        "quickstart": [
            "quickstart", f"--world={{{world}, {shape}}}", "--methods=[lora]", "--seeds=[1]", "--max_steps=1", "--r=2",
            "--training_arguments={use_cpu: true}",
        ],
    }[command]  # fmt: skip


def run(code: list[str], folder: Path, log: Path) -> subprocess.CompletedProcess:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "HF_", "PYTHON"))},
        "PYTHONPATH": os.pathsep.join([str(HERE / "no_network"), str(SOURCE)]),
        "HF_HUB_OFFLINE": "1",
        "BALORA_CACHE": str(folder / "cache"),
        "BALORA_NETWORK_LOG": str(log),
    }
    return subprocess.run([sys.executable, *code], capture_output=True, text=True, env=environment, timeout=800)


OTHERS = ["compare", "evaluate", "audit", "quickstart"]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", *(pytest.param(one, marks=pytest.mark.reliability) for one in OTHERS)])
def test_no_socket_is_opened(command, folder, tmp_path):
    log, out = tmp_path / "network.log", tmp_path / "out"
    done = run(["-m", "balora.cli", *arguments(command, folder), f"--output_dir={out}"], folder, log)
    assert done.returncode == 0, done.stderr
    assert not log.exists(), log.read_text()
    written = {path.name for path in out.rglob("*")}
    assert written & {"result.json", "audit.json", "results.json"}
    # No tracking integration was started.
    assert not written & {"wandb", "runs.tensorboard", "mlruns", "trackio"}
    assert not any(name.startswith("events.out.tfevents") for name in written)


@pytest.mark.parametrize(
    "attempt",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import socket; socket.getaddrinfo('huggingface.co', 443)",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'], check=True)",
    ],
)
def test_the_network_block_works(attempt, folder, tmp_path):
    log = tmp_path / "network.log"
    assert run(["-c", attempt], folder, log).returncode != 0
    assert log.read_text().startswith("socket.")


def test_a_hub_name_is_refused_without_network_access(folder, tmp_path):
    log = tmp_path / "network.log"
    command = ["-m", "balora.cli", "train", str(folder / "recipe.yaml"), f"--output_dir={tmp_path / 'out'}"]
    done = run([*command, "--model_name_or_path=no/such-model"], folder, log)
    assert done.returncode == 2
    assert done.stderr.count("balora: error:") == 1
    assert "Traceback" not in done.stderr
    assert not log.exists(), log.read_text()
    assert not (tmp_path / "out").exists()
