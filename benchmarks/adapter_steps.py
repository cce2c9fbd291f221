"""Training steps of adapters, timed in processes of their own and held against one of them as ratios."""

import json
import statistics
import time
from collections.abc import Iterable
from typing import Any

import torch
from processes import in_fresh_process, in_turn, resident_mb
from torch import nn

from balora.utils.modules import trainable_parameters

WARM_UP = 2
Figures = dict[str, float]


def time_steps(model: nn.Module, batch: dict[str, Any], steps: int, warm_up: int | None = None) -> Figures:
    """Median seconds of a step with AdamW, peak megabytes with the model and the process, and trained parameters."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds, first = [], WARM_UP if warm_up is None else warm_up
    for _ in range(first + steps):
        start = time.perf_counter()
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[first:]),
        "peak_memory_mb": resident_mb(),
        "parameters": trainable_parameters(model),
    }


def rounds_of(script: str, contenders: Iterable[str], rounds: int, *arguments: str) -> dict[str, list[Figures]]:
    """Each contender's figures in every round, from `script --worker NAME` and the arguments, all in turn."""
    names = list(contenders)
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for name in in_turn(names, rounds):
        runs[name].append(in_fresh_process(script, "--worker", name, *arguments))
    return runs


def report(shape: str, runs: dict[str, list[Figures]]) -> list[dict[str, object]]:
    """Print the table and a line of JSON for each contender; ratios are to the first in the same round, medians."""
    print(f"{'contender':<18}{'parameters':>12}{'seconds':>9}{'× time':>9}{'(range)':>16}{'× memory':>10}")
    rows, first = [], next(iter(runs.values()))
    for name, rounds in runs.items():
        pairs = list(zip(rounds, first, strict=True))
        times = [run["seconds"] / base["seconds"] for run, base in pairs]
        row = {
            "shape": shape,
            "contender": name,
            "parameters": rounds[0]["parameters"],
            "seconds": round(statistics.median(run["seconds"] for run in rounds), 4),
            "ratio_time": round(statistics.median(times), 4),
            "ratio_time_range": [round(min(times), 3), round(max(times), 3)],
            "ratio_memory": round(statistics.median(r["peak_memory_mb"] / b["peak_memory_mb"] for r, b in pairs), 4),
            "rounds": len(rounds),
        }
        rows.append(row)
        spread = f"({min(times):.3f}–{max(times):.3f})"
        print(
            f"{name:<18}{row['parameters']:>12,}{row['seconds']:>9.3f}{row['ratio_time']:>9.3f}{spread:>16}"
            f"{row['ratio_memory']:>10.2f}"
        )
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return rows
