"""Killed at random instants and started again until it is done, a command ends with the files that it always ends with.

`BALORA_KILLS` says how often in all (50), `BALORA_KILLS_SEED` draws other instants. Half of the kills are SIGKILL, half
SIGTERM, of the process that was started and of no other: what it started must see to itself.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytestmark = pytest.mark.reliability
KILLS = int(os.environ.get("BALORA_KILLS", "50"))
SEED = int(os.environ.get("BALORA_KILLS_SEED", "0"))
WORDS = "<unk> <s> </s> the cat dog sat ran on a mat hill yes no who ? where and so he she said that was late nurse"
#: What depends on the clock or the machine.
OF_THE_CLOCK = re.compile(r"seconds|per_second|runtime|peak_memory|train_loss$|^date$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with an adapter on it, rows for it, and a recipe."""
    folder = tmp_path_factory.mktemp("kills")
    vocabulary = {word: number for number, word in enumerate(WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 32}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": len(vocabulary), "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    base = LlamaForCausalLM(LlamaConfig(**shape))
    base.save_pretrained(folder / "model")
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    rows = [{"prompt": f"who sat on {on} ?", "completion": who} for on in ("mat", "hill") for who in ("cat", "dog")]
    for name in ("train", "eval"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 10))
    (folder / "texts.txt").write_text("the nurse said that she was late\nthe cat sat on a mat\n" * 40)
    recipe = {
        "name": "tiny", "model_name_or_path": str(folder / "model"), "method": "ba-lora", "methods": ["lora", "full"],
        "train_file": str(folder / "train.jsonl"), "validation_file": str(folder / "eval.jsonl"),
        "perplexity_file": str(folder / "texts.txt"), "r": 2, "lora_dropout": 0.1, "sample_rate": 0.5,
        "bias_path_weight": 0.1, "anchor_weight": 0.1, "anchor_samples": 8, "anchor_length": 8, "max_steps": 150,
        "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 0.01,
        "train_sampling_strategy": "group_by_length", "logging_steps": 7, "save_steps": 10,
        "training_arguments": {"use_cpu": True},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def arguments(command: str, folder: Path, out: Path) -> list[str]:
    recipe = str(folder / "recipe.yaml")
    return {
        "train": ["train", recipe],
        "sweep": ["sweep", recipe, "--sweep={r: [1, 2]}", "--methods=[lora]", "--seeds=[1]", "--max_steps=40"],
        "evaluate": ["evaluate", recipe, f"--adapter={folder / 'adapter'}"],
        "audit": [
            "audit", str(folder / "model"), str(folder / "adapter"), f"--data_file={folder / 'texts.txt'}",
            "--own_texts=8", "--own_length=8",
        ],
    }[command] + [f"--output_dir={out}"]  # fmt: skip


def started(command: list[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"BALORA_CACHE": str(log.parent / "cache")}
    with open(log, "ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "balora.cli", *command], stdout=file, stderr=file, env=environment
        )


def children_of(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process]) -> bool:
    """Whether they have ended, or end in a moment: Python's helpers wait to see that their parent has."""
    _, alive = psutil.wait_procs(processes, timeout=60)
    return not alive


def timed(command: list[str], log: Path) -> float:
    begun = time.monotonic()
    assert started(command, log).wait() == 0, log.read_text()
    return time.monotonic() - begun


def killed_until_done(command: list[str], log: Path, draw: random.Random, whole: float, kills: int) -> int:
    """Kill so often, each time at an instant between the last's and the end, and let it end; how often it was killed."""
    done = 0
    for number in range(kills):
        process = started(command, log)
        # Much of a short run is imports, so half of the instants are later than those.
        time.sleep(whole * draw.choice([draw.uniform(0.0, 1.0), draw.uniform(0.5, 1.0)]))
        if process.poll() is not None:
            assert process.returncode == 0 or number, log.read_text()
            break
        below = children_of(process)
        process.send_signal(draw.choice([signal.SIGKILL, signal.SIGTERM]))
        process.wait(timeout=120)
        assert gone(below), "what a killed study had started goes on"
        done += 1
    return done


def content_of(path: Path) -> object:
    """What a file says, the clock aside."""
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    return None


def plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if not OF_THE_CLOCK.search(key)}
    if isinstance(value, list):
        # The last row of a training's log is of the process that ended it.
        return [plain(inner) for inner in value if not (isinstance(inner, dict) and "train_runtime" in inner)]
    return value


def results(out: Path) -> Iterator[Path]:
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".yaml", ".md", ".html", ".jsonl", ".png"):
            yield path.relative_to(out)


@pytest.mark.parametrize("command", ["train", "sweep", "evaluate", "audit"])
def test_killed_again_and_again_it_ends_the_same(command, folder, tmp_path):
    draw = random.Random(f"{SEED} {command}")
    log, whole, cut = tmp_path / "log.txt", tmp_path / "whole", tmp_path / "cut"
    seconds = timed(arguments(command, folder, whole), log)
    wanted, kills = max(1, KILLS // 4 + (command == "train") * (KILLS % 4)), 0
    for attempt in range(20):
        target = tmp_path / f"cut {attempt}"
        kills += killed_until_done(arguments(command, folder, target), log, draw, seconds, wanted - kills)
        result = {"train": "result.json", "sweep": "results.json", "evaluate": "result.json", "audit": "audit.json"}
        if command != "evaluate" or not (target / result[command]).exists():  # which refuses a folder that is done
            assert started(arguments(command, folder, target), log).wait() == 0, log.read_text()[-3000:]
        assert list(results(target)) == list(results(whole))
        for name in results(whole):
            text = (whole / name).read_text(errors="replace").replace(str(whole), "")
            assert text and content_of(target / name) == content_of(whole / name), f"{name} differs"
        left = [p.name for p in target.rglob("*") if p.name.startswith(("checkpoint-", "_unfinished"))]
        assert not left, "what was there to go on from is deleted when it is done"
        if kills >= wanted:
            break
    assert kills == wanted, f"killed {kills} times in all; seed {SEED}"
    del cut
