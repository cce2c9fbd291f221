"""Commands killed at random instants and started again end with the same files as undisturbed ones.

`BALORA_KILLS` says how often in all (50), `BALORA_KILLS_SEED` draws other instants. Half of the kills are SIGKILL and
half SIGTERM, of the process that was started and of no other: what it started must see to itself. Processes are forked
from one that has the libraries imported, as a study's runs are from theirs: most of a tiny run would be imports.
"""

import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from balora.training.checkpoints import UNFINISHED

pytestmark = pytest.mark.reliability
KILLS = int(os.environ.get("BALORA_KILLS", "50"))
SEED = int(os.environ.get("BALORA_KILLS_SEED", "0"))
WORDS = "<unk> <s> </s> the cat dog sat ran on a mat hill yes no who ? where and so he she said that was late nurse"
#: Keys whose values depend on the clock, the machine or the folder.
INCIDENTAL = re.compile(r"seconds|peak_memory|^output_dir$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Save a tiny model, an adapter for it, rows and a recipe."""
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


PROGRAM = """
import functools, multiprocessing, os, sys
from balora.cli import main
from balora.study import pool

for number in (1, 2):
    os.dup2(os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT), number)
os.environ["BALORA_CACHE"] = {cache!r}
pool._context = functools.partial(multiprocessing.get_context, "fork")
sys.exit(main({arguments!r}))
"""


def started(command: list[str], log: Path) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trl", "balora.audit", "balora.study.comparison", "balora.study.evaluate"])
    program = PROGRAM.format(log=str(log), cache=str(log.parent / "cache"), arguments=command)
    process = context.Process(target=exec, args=(program,))
    process.start()
    return process


def ended(process: BaseProcess) -> int:
    process.join()
    return process.exitcode


def children_of(process: BaseProcess) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def gone(processes: list[psutil.Process]) -> bool:
    """Return whether the processes end within a while; on a SIGTERM they save first."""
    _, alive = psutil.wait_procs(processes, timeout=120)
    return not alive


def killed_until_done(
    command: list[str], log: Path, draw: random.Random, whole: float, kills: int, done: Path | None
) -> int:
    """Kill the command at random instants until it is done, at most `kills` times; return how often.

    An instant lies within the `whole` seconds of an undisturbed run. Where the file `done` exists the command is
    not started again, since it would refuse to.
    """
    for number in range(kills):
        if done is not None and done.exists():  # the signal came between the file and the end
            return number
        process = started(command, log)
        process.join(draw.uniform(0, whole))
        below, number_of_signal = children_of(process), draw.choice([signal.SIGKILL, signal.SIGTERM])
        with contextlib.suppress(ProcessLookupError):
            if process.exitcode is None:
                os.kill(process.pid, number_of_signal)
        if ended(process) == 0:  # before the signal came
            return number
        assert process.exitcode in (-number_of_signal, 128 + number_of_signal), log.read_text()[-3000:]
        assert gone(below), "what a killed study had started goes on"
    return kills


def content_of(path: Path) -> object:
    """Return a file's content without times and paths; of pages and pictures only that they exist."""
    if path.suffix == ".json":
        return plain(json.loads(path.read_text()))
    if path.suffix == ".safetensors":
        return {name: tensor.tolist() for name, tensor in load_file(path).items()}
    return None


def plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if not INCIDENTAL.search(key)}
    if isinstance(value, list):
        # The last row of a training's log is of the process that ended it.
        return [plain(inner) for inner in value if not (isinstance(inner, dict) and "train_runtime" in inner)]
    return value


def results(out: Path) -> Iterator[Path]:
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.suffix in (".json", ".safetensors", ".yaml", ".md", ".html", ".jsonl", ".png"):
            yield path.relative_to(out)


#: Share of the kills per command; training has the most state to lose.
SHARES = {"train": 0.4, "sweep": 0.3, "evaluate": 0.1, "audit": 0.2}


@pytest.mark.parametrize("command", SHARES)
def test_a_command_killed_repeatedly_ends_with_the_same_files(command, folder, tmp_path):
    draw = random.Random(f"{SEED} {command}")
    log, whole = tmp_path / "log.txt", tmp_path / "whole"
    ended(started(arguments(command, folder, tmp_path / "first"), log))  # so that none has caches to fill
    begun = time.monotonic()
    assert ended(started(arguments(command, folder, whole), log)) == 0, log.read_text()
    seconds = time.monotonic() - begun
    wanted, kills, attempts = max(1, round(KILLS * SHARES[command])), 0, 0
    while kills < wanted:
        cut = tmp_path / f"cut {attempts}"
        # A few at a time, so that the end is come to after few kills as well as after many.
        some = min(wanted - kills, draw.randint(1, 5))
        done = cut / "result.json" if command == "evaluate" else None  # which refuses a folder that is done
        kills += killed_until_done(arguments(command, folder, cut), log, draw, seconds, some, done)
        attempts += 1
        if done is None or not done.exists():
            assert ended(started(arguments(command, folder, cut), log)) == 0, log.read_text()[-3000:]
        assert list(results(cut)) == list(results(whole))
        for name in results(whole):
            assert content_of(cut / name) == content_of(whole / name), f"{name} differs, seed {SEED}"
        left = [path.name for path in cut.rglob("*") if path.name.startswith(("checkpoint-", UNFINISHED))]
        assert not left, "what there was to go on from is deleted when it is done"
    print(f"{command}: {kills} kills in {attempts} runs of {seconds:.1f} s")
