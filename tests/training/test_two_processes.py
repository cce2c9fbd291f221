"""Two processes under DDP train the same weights as one, with every term that depends on the whole batch.

Each process is a script of its own: a process group in the test run's own process can wait for ever on its way out.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_folders import built_once

TESTS = Path(__file__).resolve().parents[1]
SCRIPT = """
import json
import os
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path.insert(0, sys.argv[1])
from tiny_models import inputs_for, make
import balora

out, rank, world, cases = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
torch.set_num_threads(1)
# Processes meet at a file instead of a port, which could be in use.
dist.init_process_group("gloo", init_method=f"file://{out}.store", rank=rank, world_size=world)

def train(case, name, settings):
    torch.manual_seed(rank)
    config = balora.BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **settings)
    model = balora.get_balora_model(make(name), config).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.set_progress(0.5)
    inputs = inputs_for(name, rows=4)
    if name == "llama":
        inputs["labels"][3, :9] = -100
        tokens = inputs["input_ids"].where(inputs["attention_mask"] == 1, -100)
        counted = {"num_items_in_batch": inputs["labels"][:, 1:], "num_tokens_in_batch": tokens}
    else:
        model.cache_teacher(Path(f"{out}.{case}.features"), writer=str(rank))
        counted = {"num_items_in_batch": inputs["labels"], "num_tokens_in_batch": inputs["labels"]}
    if config.task_names:
        inputs["task_ids"] = torch.tensor([0, 0, 1, 0])  # sometimes a process has no row of the second task
    counts = {key: value.ne(-100).sum() / world for key, value in counted.items()}
    wrapped = DistributedDataParallel(model) if world > 1 else model
    size = 4 // world
    for step in range(3):
        mine = (rank + step) % world  # another part of the data each epoch, as with a distributed sampler
        part = {key: value[mine * size : (mine + 1) * size] for key, value in inputs.items()}
        model.zero_grad()
        wrapped(**part, **counts).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter -= 0.1 * parameter.grad
    return {key: parameter.detach() for key, parameter in model.named_parameters() if parameter.requires_grad}

torch.save({case: train(case, *of) for case, of in cases.items()}, f"{out}.{rank}.pt")
dist.destroy_process_group()
# Python's normal exit kills threads that wait for its lock; one inside torch sometimes aborts the process.
os._exit(0)
"""

# Terms of a batch's own matrix depend on how it is split.
ROWS = {"spectral_weight": 0.0}
OFF = ROWS | {"consistency_weight": 0.0, "diversity_weight": 0.0}
BIAS_PATH = OFF | {"bias_path_weight": 0.5, "bias_path_mode": "minimised"}
CASES = {
    "causal": ("llama", ROWS),
    "classifier": ("bert", ROWS | {"diversity_weight": 0.0}),
    "bias path": ("llama", BIAS_PATH),
    "bias path of a classifier": ("bert", BIAS_PATH),
    "two tasks": ("llama", OFF | {"method": "lora+reg", "task_names": ["qa", "code"], "alignment_weight": 0.5}),
}
#: DDP raises if a forward leaves out a parameter: here some batches have no row for the bias path.
SAMPLED = {"sampled": ("llama", BIAS_PATH | {"bias_path_sample_rate": 0.25})}


def train(directory: Path, world: int, cases: dict[str, tuple]) -> None:
    """Run so many processes; each writes the weights that it has after three steps of each case."""
    environment = os.environ | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})
    out = directory / f"{world}"
    command = [sys.executable, "-c", SCRIPT, str(TESTS), str(out)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), json.dumps(cases)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[dict, dict, dict]:
    """One process's, and each of two's."""

    def both(folder: Path) -> None:
        train(folder, 1, CASES)
        train(folder, 2, CASES | SAMPLED)

    folder = built_once(tmp_path_factory, "two_processes", both)
    return tuple(torch.load(folder / name) for name in ("1.0.pt", "2.0.pt", "2.1.pt"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_the_same_weights_as_one(case, weights):
    alone, first, second = (of[case] for of in weights)
    assert alone.keys() == first.keys() == second.keys()
    for key, weight in alone.items():
        torch.testing.assert_close(first[key], weight, rtol=1e-5, atol=1e-7, msg=key)
        assert torch.equal(first[key], second[key]), key


def test_two_processes_stay_equal_if_one_has_no_row_for_the_bias_path(weights):
    _, first, second = (of.get("sampled") for of in weights)
    assert "lora_bias_path.direction" in first
    for key, weight in first.items():
        assert torch.equal(weight, second[key]), key
