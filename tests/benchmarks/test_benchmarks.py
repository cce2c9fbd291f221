"""The benchmarks run, and what they time against each other computes the same."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import adapter_steps
import alignment_cost
import anchor_cost
import contenders
import evaluation_cost
import gate_cost
import growth
import head_passes
import initialization_cost
import processes

TINY = contenders.Shape(32, 2, 97, 2, 8, 4, 64, 4)


def first_loss(name: str) -> torch.Tensor:
    model, loss_of = contenders.CONTENDERS[name](TINY)
    loss = loss_of(contenders.batch_of(TINY))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return loss.detach()


def test_contenders_with_the_same_objective_have_the_same_loss():
    losses = {name: first_loss(name) for name in ("reference", "trl", "balora")}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, losses["reference"], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("name", ["pissa", "two-model", "balora-q25"])
def test_the_other_contenders_train(name):
    assert first_loss(name).isfinite()


def test_everyone_comes_first_once():
    assert list(processes.in_turn("abc", 3)) == [*"abc", *"bca", *"cab"]


def test_rows_are_kept_with_versions(tmp_path):
    for number in range(2):
        processes.write_rows(tmp_path / "new" / "rows.jsonl", [{"number": number}])
    rows = [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()]
    assert [row["number"] for row in rows] == [0, 1]
    assert rows[0]["torch"] == torch.__version__


def test_an_exponent_is_a_slope():
    sizes = [1, 2, 4, 8]
    assert growth.exponent(sizes, [size**1.5 for size in sizes]) == pytest.approx(1.5)


def test_gates_train_beside_plain_lora(monkeypatch):
    monkeypatch.setattr(adapter_steps, "WARM_UP", 0)
    tiny = gate_cost.Shape(16, 1, 2, 50, 2, 6, 3, r=2)
    threads = torch.get_num_threads()
    found = {name: gate_cost.measure(name, tiny, steps=1)["parameters"] for name in gate_cost.CONTENDERS}
    torch.set_num_threads(threads)
    heads, trunk = 12 * 4 * 65, 385 * 64  # 12 projections of rank 2; from 384 to 64
    assert found["selora"] == found["selora-no-loss"] == found["lora"] + heads + trunk
    assert found["selora-per-layer"] == found["lora"] + heads + 12 * trunk


def test_tasks_train_with_and_without_alignment(monkeypatch):
    monkeypatch.setattr(alignment_cost, "WARM_UP", 0)
    tiny = alignment_cost.Shape(d=16, blocks=2, vocabulary=50, length=6, tasks=3, r=2)
    threads = torch.get_num_threads()
    found = {name: alignment_cost.measure(name, tiny, steps=1)["parameters"] for name in alignment_cost.CONTENDERS}
    torch.set_num_threads(threads)
    assert found == dict.fromkeys(("unaligned", "aligned"), 3 * 2 * 4 * 2 * (16 + 16))  # tasks, blocks, targets, rank


def test_anchors_and_swaps_train_beside_plain_lora(monkeypatch):
    monkeypatch.setattr(adapter_steps, "WARM_UP", 0)
    threads = torch.get_num_threads()
    found = {name: anchor_cost.measure(name, TINY, steps=1)["parameters"] for name in anchor_cost.CONTENDERS}
    torch.set_num_threads(threads)
    assert len(set(found.values())) == 1


def test_training_and_evaluation_run_on_the_same_rows(monkeypatch):
    monkeypatch.setattr(adapter_steps, "WARM_UP", 0)
    threads = torch.get_num_threads()
    found = {name: evaluation_cost.measure(name, TINY, steps=1)["parameters"] for name in evaluation_cost.CONTENDERS}
    torch.set_num_threads(threads)
    assert len(set(found.values())) == 1


def test_ratios_are_to_the_first_of_the_same_round(capsys):
    runs = {
        name: [{"seconds": s, "peak_memory_mb": 100.0, "parameters": 3} for s in seconds]
        for name, seconds in {"base": [1.0, 2.0, 4.0], "other": [2.0, 2.2, 5.0]}.items()
    }
    rows = adapter_steps.report("shape", runs)
    assert [row["ratio_time"] for row in rows] == [1.0, 1.25]
    assert rows[1]["ratio_time_range"] == [1.1, 2.0]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:]] == rows


def test_the_start_is_timed_beside_stock_pissa(capsys):
    runs = {name: [initialization_cost.measure(name, layers=1)] for name in ("peft", "randomized-bfloat16")}
    base, other = initialization_cost.report(runs)
    assert base["ratio_time"] == base["ratio_memory"] == 1.0
    assert other["contender"] == "randomized-bfloat16"
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == other


def test_products_and_passes_of_the_head_are_timed():
    threads = torch.get_num_threads()
    found = head_passes.measure(vocabulary=97, d=8, rows=4, repeats=1)
    torch.set_num_threads(threads)
    assert found["products_ms"] > 0
    assert found.keys() == {"products_ms", "passes_ms"}
