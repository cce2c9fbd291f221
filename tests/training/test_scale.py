"""Distributed training equals training in one process: DDP, FSDP2, ZeRO, gathered terms, a tensor-parallel head.

Each process is a script's, `many_processes.py`: none is opened in the test run's own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shared_folders import built_once
from tiny_models import inputs_for, make

from balora import BALoraConfig, get_balora_model
from balora.errors import BALoraError
from balora.fused import why_not_fused
from balora.training.sharded import check_deepspeed, check_fsdp
from balora.utils.distributed import gather_rows

SCALE = Path(__file__).resolve().parents[2] / "recipes" / "scale"
SCRIPT = Path(__file__).with_name("many_processes.py")
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
TERMS = CONSTANT | {"consistency_weight": 0.5, "diversity_weight": 0.1, "spectral_weight": 0.3}
GATHERED = TERMS | {"gather_batch_terms": True}
#: Every term of each task; uneven numbers of tokens on two processes, and two micro-batches a step, in all. What one
#: process does is never checkpointed.
CASES = {
    "causal": ("llama", GATHERED | {"anchor_weight": 0.3}, {}),
    "anchors in every other step": ("llama", GATHERED | {"anchor_weight": 0.3, "anchor_every": 2}, {}),
    "reverse": (
        "llama",
        GATHERED | {"consistency_direction": "reverse", "bias_path_weight": 0.5, "bias_path_mode": "minimised"},
        {"gradient_checkpointing": True},
    ),
    "classifier": ("bert", GATHERED, {}),
    "from logits": ("llama", GATHERED | {"fused_lm_head": False}, {}),
}
QUICK = {"ddp": list(CASES), "fsdp2": ["causal", "classifier"]}
SAVING = {"optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
HEAVY = {
    **{name: case for name, case in CASES.items() if name not in QUICK["fsdp2"]},
    "trained head": ("llama", GATHERED | {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, {}),
    "saving": ("llama", TERMS | {"spectral_weight": 0.0}, SAVING),
}
#: Some micro-batches have no row for the teacher or the bias path; sharded processes must still run those passes.
SAMPLED = {
    "sampled": ("llama", TERMS | {"sample_rate": 0.25, "bias_path_weight": 0.5, "bias_path_sample_rate": 0.25}, {})
}
#: Weights sharded over two processes, and shards replicated on two.
HYBRID = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}
#: DeepSpeed is optional; its cases run if it is installed. PiSSA has frozen teacher factors, LoRA has none.
ZERO = {
    **{name: CASES[name] for name in QUICK["fsdp2"]},
    "lora": ("llama", GATHERED | {"anchor_weight": 0.3, "method": "lora+reg"}, {}),
}
LOGITS = CONSTANT | {"consistency_weight": 0.5, "spectral_weight": 0.1}
GROUPS = {
    "one": (1, "ddp", {name: (*case[:2], {}) for name, case in CASES.items()}, {}),
    "ddp": (2, "ddp", CASES, {}),
    "fsdp2": (2, "fsdp2", {name: CASES[name] for name in QUICK["fsdp2"]}, {}),
    "whole head": (1, "tp", {"head": (LOGITS | {"fused_lm_head": False},)}, {}),
    "parallel head": (2, "tp", {"head": (LOGITS,)}, {}),
}


def run(directory: Path, groups: dict) -> dict[str, list[dict]]:
    """Run groups of (processes, how, cases, environment); return each process's results by case."""
    (directory / "cases.json").write_text(json.dumps(groups))
    environment = os.environ | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    command = [sys.executable, str(SCRIPT), str(directory), str(directory / "cases.json")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    return read(directory, groups)


def read(directory: Path, groups: dict) -> dict[str, list[dict]]:
    """Return what each process of each group found, by case."""
    return {
        group: [torch.load(directory / f"{group}.{rank}.pt") for rank in range(world)]
        for group, (world, *_) in groups.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return built_once(tmp_path_factory, "scale", lambda folder: run(folder, GROUPS))


@pytest.fixture(scope="module")
def found(folder):
    return read(folder, GROUPS)


def zero_environment(how: str, directory: Path) -> dict[str, str]:
    """Return the recipes' DeepSpeed configuration, changed to shard small weights too."""
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed; docs/scale.md says how these tests were run")
    config = json.loads((SCALE / f"{how}.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (directory / f"{how}.json").write_text(json.dumps(config))
    return {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(directory / f"{how}.json")}


@pytest.fixture(scope="module", params=["zero2", "zero3"])
def zero(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("zero")
    two = (2, "zero", ZERO, zero_environment(request.param, directory))
    return directory, run(directory, {"two": two, "one": (1, "ddp", ZERO, {})})


def assert_same(several: list[dict], alone: dict) -> None:
    """Compare losses, components and all gradients, at every step and in every process."""
    for of in several:
        assert len(of["gradients"]) == len(alone["gradients"])
        for step, expected in zip(of["gradients"], alone["gradients"], strict=True):
            assert step.keys() == expected.keys()
            largest = max(gradient.abs().max() for gradient in expected.values())
            for name, gradient in expected.items():
                torch.testing.assert_close(step[name], gradient, rtol=0, atol=1e-5 * largest.item(), msg=name)
    for row, expected in zip(several[0]["log"], alone["log"], strict=True):
        parts = [name for name in expected if name.startswith("loss")]
        assert len(parts) > 1
        for name in parts:
            assert row[name] == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize(("how", "case"), [(how, case) for how, cases in QUICK.items() for case in cases])
def test_two_processes_give_the_losses_and_gradients_of_one(found, how, case):
    alone, several = found["one"][0][case], [rank[case] for rank in found[how]]
    assert_same(several, alone)
    assert all(of["fused"] == alone["fused"] for of in several)
    assert several[0]["class"].startswith("FSDP") == (how == "fsdp2")


@pytest.mark.parametrize(("how", "case"), [(how, case) for how, cases in QUICK.items() for case in cases])
def test_two_processes_save_the_adapter_of_one(folder, how, case):
    saved, expected = (
        load_file(folder / f"{group}.{case}" / "adapter" / "adapter_model.safetensors") for group in (how, "one")
    )
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.parametrize("case", ZERO)
def test_zero_gives_the_losses_gradients_and_adapter_of_one_process(zero, case):
    directory, found = zero
    alone, several = found["one"][0][case], [rank[case] for rank in found["two"]]
    assert_same(several, alone)
    assert all(of["fused"] == alone["fused"] for of in several)
    assert several[0]["drift"] == pytest.approx(alone["drift"], rel=1e-4)
    saved, expected = (
        load_file(directory / f"{group}.{case}" / "adapter" / "adapter_model.safetensors") for group in ("two", "one")
    )
    assert saved.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-5, atol=2e-6, msg=name)


@pytest.mark.reliability
@pytest.mark.parametrize("how", ["zero2", "zero3"])
def test_zero_resumes_from_its_checkpoints(how, tmp_path):
    case = HEAVY["saving"]
    cases = {"saving": case, "again": (*case, f"{how}.saving/checkpoint-2")}
    groups = {how: (2, "zero", cases, zero_environment(how, tmp_path)), "one": (1, "ddp", {"saving": case}, {})}
    found = run(tmp_path, groups)
    assert_same([rank["saving"] for rank in found[how]], found["one"][0]["saving"])
    expected = load_file(tmp_path / "one.saving" / "adapter" / "adapter_model.safetensors")
    for folder in ("saving/adapter", "saving/checkpoint-3", "again/adapter"):
        saved = load_file(tmp_path / f"{how}.{folder}" / "adapter_model.safetensors")
        assert saved.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{folder} {name}")


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_drift_is_measured_on_sharded_weights(found, how):
    alone, several = (found[group][0]["causal"]["drift"] for group in ("one", how))
    assert several == pytest.approx(alone, rel=1e-4)


def test_tensor_parallel_head_trains_on_whole_logits_with_a_warning(found):
    alone, several = found["whole head"][0]["head"], [rank["head"] for rank in found["parallel head"]]
    for of in several:
        assert of["log"][0]["loss"] == pytest.approx(alone["log"][0]["loss"], rel=1e-6)
        assert any("sharded over processes" in line for line in of["warned"])
        for name, gradient in alone["gradients"][0].items():
            torch.testing.assert_close(of["gradients"][0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_residual_method_on_sharded_weights_raises(found):
    assert "down_proj is sharded" in found["parallel head"][0]["refused"]


@pytest.mark.reliability
def test_fsdp2_with_a_trained_head_a_sampled_teacher_and_checkpoints(tmp_path):
    def resumed(group: str) -> dict:
        return {"again": (*HEAVY["saving"], f"{group}.saving/checkpoint-2")}

    saving = {"saving": HEAVY["saving"]}
    groups = {
        "ddp": (2, "ddp", HEAVY | resumed("ddp"), {}),
        "fsdp2": (2, "fsdp2", HEAVY | SAMPLED | resumed("fsdp2"), {}),
        "efficient": (2, "fsdp2", saving, {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}),
        "in parts": (2, "fsdp2", saving | resumed("in parts"), {"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}),
        "recomputed": (2, "fsdp2", saving | resumed("recomputed"), {"FSDP_ACTIVATION_CHECKPOINTING": "true"}),
        "two copies": (4, "fsdp2", {"from logits": CASES["from logits"], "causal": CASES["causal"]}, HYBRID),
    }
    found = run(tmp_path, groups | {"one": (1, "ddp", HEAVY | CASES, {})})
    one = found["one"][0]
    for case in ("from logits", "causal"):
        assert_same([rank[case] for rank in found["two copies"]], one[case])
    for case in HEAVY:
        for how in ("ddp", "fsdp2"):
            assert_same([rank[case] for rank in found[how]], one[case])
    expected = load_file(tmp_path / "one.saving" / "adapter" / "adapter_model.safetensors")
    for group in ("ddp", "fsdp2", "efficient", "in parts", "recomputed"):
        for case in {"saving", "again"} & found[group][0].keys():
            saved = load_file(tmp_path / f"{group}.{case}" / "adapter" / "adapter_model.safetensors")
            assert saved.keys() == expected.keys()
            for name, tensor in expected.items():
                torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5, msg=f"{group} {case} {name}")
    first, second = (rank["sampled"]["weights"] for rank in found["fsdp2"])
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())


def test_residual_method_on_weights_loaded_under_zero3_raises():
    base = make("llama")
    base.model.layers[0].mlp.down_proj.weight.ds_id = 7  # the attribute that DeepSpeed sets
    with pytest.raises(BALoraError, match=r"down_proj is sharded"):
        get_balora_model(base, BALoraConfig(r=4, target_modules=["down_proj"]))


def test_gather_rows_returns_its_input_in_a_single_process():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(rows) is rows


def test_partial_head_weight_is_not_fused():
    """Simulates libraries that hold a plain tensor of their shard and complete the logits in a hook."""
    model = make("llama")
    head = model.get_output_embeddings()
    rest = head.weight.detach()[50:].clone()
    head.weight = torch.nn.Parameter(head.weight.detach()[:50])
    head.register_forward_hook(lambda _, args, out: torch.cat([out, args[0] @ rest.T], -1))
    assert "not whole here" in why_not_fused(model, inputs_for("llama"), shift=1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"method": "lora+reg", "task_names": ["a", "b"], "alignment_weight": 0.1}, "alignment_weight"),
        ({"method": "selora+reg", "sentence_dim": 3, "semantic_weight": 0.1}, "semantic_weight"),
    ],
)
def test_terms_of_adapter_weights_raise_if_sharded(settings, named):
    config = BALoraConfig(target_modules="all-linear", **settings)
    for refuse, how in ((check_fsdp, 2), (check_deepspeed, 3)):
        with pytest.raises(BALoraError, match=named):
            refuse(config, how)
    check_deepspeed(config, 2)


def test_fsdp1_raises():
    with pytest.raises(BALoraError, match="fsdp_version"):
        check_fsdp(BALoraConfig(method="lora+reg"), 1)
    check_fsdp(BALoraConfig(method="ba-lora"), 2)
    check_deepspeed(BALoraConfig(method="ba-lora"), 3)
