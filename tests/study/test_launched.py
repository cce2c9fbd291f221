"""`balora train` launched on two processes writes one result, equal to that of one process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from balora.cli import main
from balora.recipe.parse import parse
from balora.study.plan import single

SCALE = Path(__file__).resolve().parents[2] / "recipes" / "scale"
CONFIGURATIONS = sorted(path.name for path in SCALE.glob("*.yaml") if not path.name.startswith("llama"))
WORDS = ["<unk>", "<s>", "</s>", *re.findall(r"\S+", "the cat dog sat ran on a mat hill who ? where and")]


@pytest.fixture
def recipe(tmp_path) -> dict:
    """Return a recipe for BA-LoRA with anchors on a two-layer model."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, model_max_length=32).save_pretrained(tmp_path / "m")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=32, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(tmp_path / "m")
    rows = [
        {"prompt": f"who sat on {where} {'and ' * more}?", "completion": who}
        for more, where in enumerate(("mat", "hill", "the mat"))
        for who in ("cat", "dog")
    ]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    (tmp_path / "story.txt").write_text("the cat sat on a mat and the dog ran\n" * 3)
    return {
        "name": "tiny",
        "method": "ba-lora",
        "model_name_or_path": str(tmp_path / "m"),
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "eval.jsonl"),
        "perplexity_file": str(tmp_path / "story.txt"),
        "gather_batch_terms": True,
        "anchor_weight": 0.1,
        "anchor_samples": 1,
        "anchor_length": 12,
        "r": 4,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 2,
        "training_arguments": {"use_cpu": True},
    }


def launched(recipe: dict, tmp_path: Path) -> subprocess.CompletedProcess:
    """Run the recipe on two processes, with the shipped configuration for eight."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    # Port 0 picks a free port.
    options = ["--config_file", str(SCALE / "ddp_8.yaml"), "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "balora.cli"]
    environment = os.environ | {"BALORA_CACHE": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true"}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    command += ["train", str(tmp_path / "recipe.yaml")]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


def test_two_processes_write_the_result_of_one(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    ended = launched({**recipe, "output_dir": str(tmp_path / "two")}, tmp_path)
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert ended.stdout.count("eval_loss") == 1
    assert ended.stderr.count("ba-lora, seed 42: 4 steps") == 1
    assert len(list((tmp_path / "cache" / "anchors").iterdir())) == 1
    alone = {**recipe, "output_dir": str(tmp_path / "one"), "per_device_train_batch_size": 8}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone))
    assert main(["train", str(tmp_path / "alone.yaml")]) == 0
    two, one = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
    found, expected = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("two", "one"))
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-4)
    assert not list((tmp_path / "two").glob("checkpoint-*"))


LEAVING = """
import threading
from balora.errors import WorkerDone
from balora.study import launch

launch._connect = launch._check_sharded = lambda recipe: None
threading.Thread(target=threading.Event().wait).start()  # Python joins it on its way out
with launch.distributed_run(None):
    print("trained")
    raise WorkerDone
"""


def test_a_process_whose_part_is_done_waits_for_no_thread():
    environment = os.environ | {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", LEAVING]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "trained\n"


@pytest.mark.reliability
def test_a_mistake_ends_both_processes(recipe, tmp_path):
    ended = launched({**recipe, "output_dir": str(tmp_path / "two"), "train_file": "nowhere.jsonl"}, tmp_path)
    assert ended.returncode != 0
    assert "balora: error: nowhere.jsonl" in ended.stderr
    assert not (tmp_path / "two").exists()


def test_only_train_runs_on_several_processes(monkeypatch, capfd):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main(["quickstart"]) == 2
    assert "only `balora train`" in capfd.readouterr().err


def test_a_sharded_model_is_not_measured_on_benchmarks(recipe, tmp_path, monkeypatch, capfd):
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out"), "benchmarks": {"wikitext2": {}}})
    )
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 2
    assert "benchmarks: not measured while the model is sharded" in capfd.readouterr().err


@pytest.mark.parametrize("file", CONFIGURATIONS)
def test_accelerate_reads_the_configurations(file):
    config = load_config_from_file(str(SCALE / file))
    assert config.num_processes % config.num_machines == 0
    assert config.fsdp_config.get("fsdp_version", 2) == 2
    deepspeed = config.deepspeed_config.get("deepspeed_config_file")
    assert deepspeed is None or json.loads((SCALE.parents[1] / deepspeed).read_text())["zero_optimization"]
    assert f"--config_file recipes/scale/{file}" in (SCALE / file).read_text()


@pytest.mark.parametrize("file", [name for name in CONFIGURATIONS if name.startswith("fsdp2")])
def test_accelerate_sets_the_variables_of_the_configurations(file):
    command = ["--config_file", str(SCALE / file), "--machine_rank", "1", "--main_process_ip", "10.0.0.1"]
    command += ["--main_process_port", "0"] if file == "fsdp2_8.yaml" else []
    given = launch_command_parser().parse_args([*command, "-m", "balora.cli", "train"])
    arguments, *_ = _validate_launch_command(given)
    environment = prepare_multi_gpu_env(arguments)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_ACTIVATION_CHECKPOINTING"] == "true"
    assert environment["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    copies = environment.get("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "1")
    assert int(copies) == arguments.num_machines


@pytest.mark.parametrize("file", sorted(path.name for path in SCALE.glob("llama*.yaml")))
def test_the_recipes_for_many_devices_are_valid(file):
    recipe, _ = parse("train", [str(SCALE / file)])
    assert single(recipe).method == "ba-lora"
    named = re.findall(r"recipes/scale/\S+\.yaml", (SCALE / file).read_text())
    assert all((SCALE.parents[1] / name).is_file() for name in named)
