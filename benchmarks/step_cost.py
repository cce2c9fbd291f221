"""Time and peak memory of one optimizer step, each contender in a process of its own, in turn, on the same batch.

    python benchmarks/step_cost.py --shape small vocab

Prints a table and, for each contender, a line of JSON with stock PEFT PiSSA under Transformers' own loss as 1.0. Every
contender runs `--rounds` times, all of them in turn, so that a slow minute of the machine falls on all; the figures
are medians over rounds. `llama2-7b` and `152k` want a CUDA device and also print the floor: the arithmetic of the step
over the rate that this device multiplies at.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from contenders import CONTENDERS, SHAPES, Shape, batch_of
from processes import in_fresh_process, in_turn, resident_mb, write_rows

WARM_UP = 2


def measure(contender: str, shape: Shape, steps: int) -> dict[str, float]:
    """Median seconds of a step and peak megabytes, the model's weights and the process included (GPU: allocated)."""
    torch.set_num_threads(2)
    model, loss_of = CONTENDERS[contender](shape)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-5)
    batch = batch_of(shape)
    on_gpu = shape.device == "cuda"
    seconds = []
    for step in range(WARM_UP + steps):
        if on_gpu:
            torch.cuda.synchronize()
            if step == WARM_UP:
                torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        loss_of(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident_mb()
    return {"seconds_median": statistics.median(seconds[WARM_UP:]), "peak_memory_mb": peak}


def floor_seconds(contender: str, shape: Shape) -> float:
    """Seconds that the step's products of matrices take at the rate this device multiplies such matrices at.

    Per token and weight two operations forward and two backward for the student (frozen weights have no gradient of
    their own), two for the teacher on its share of the tokens.
    """
    body = shape.layers * (4 * shape.d**2 + 3 * shape.d * shape.intermediate)
    adapters = shape.layers * shape.r * (8 * shape.d + 3 * (shape.d + shape.intermediate))
    head = shape.d * shape.vocabulary
    teacher = {"pissa": 0.0, "balora-q25": 0.25}.get(contender, 1.0)
    tokens = shape.batch * shape.length
    operations = tokens * (2 * (2 + teacher) * (body + head) + 2 * (3 + teacher) * adapters)
    a = torch.randn(tokens, shape.d, device=shape.device, dtype=shape.dtype)
    b = torch.randn(shape.d, 8192, device=shape.device, dtype=shape.dtype)
    times = []
    for _ in range(20):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        a @ b
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return operations / (2 * tokens * shape.d * 8192 / statistics.median(times))


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small", "vocab"])
    parser.add_argument("--contender", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--steps", type=int, default=5, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, SHAPES[options.shape[0]], options.steps)))
        return
    for shape in options.shape:
        if SHAPES[shape].device == "cuda" and not torch.cuda.is_available():
            sys.exit(f"step_cost: shape {shape} wants a CUDA device and this machine has none")
        contenders = list(dict.fromkeys(["pissa", *options.contender]))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for name in in_turn(contenders, options.rounds):
            arguments = ("--worker", name, "--shape", shape, "--steps", str(options.steps))
            runs[name].append(in_fresh_process(__file__, *arguments))
        write_rows(options.output, report(shape, runs))


def report(shape: str, runs: dict[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """Print the table and a line of JSON for each contender. Ratios are medians of the rounds' own ratios."""
    print(f"\n{shape}: {SHAPES[shape]}")
    print(f"{'contender':<12}{'seconds':>9}{'MB':>8}{'× time':>9}{'(range)':>15}{'× memory':>10}")
    rows = []
    for name, rounds in runs.items():
        times = [
            run["seconds_median"] / base["seconds_median"] for run, base in zip(rounds, runs["pissa"], strict=True)
        ]
        memory = [
            run["peak_memory_mb"] / base["peak_memory_mb"] for run, base in zip(rounds, runs["pissa"], strict=True)
        ]
        row = {
            "shape": shape,
            "contender": name,
            "seconds_median": statistics.median(run["seconds_median"] for run in rounds),
            "peak_memory_mb": statistics.median(run["peak_memory_mb"] for run in rounds),
            "ratio_time": statistics.median(times),
            "ratio_memory": statistics.median(memory),
            "ratio_time_range": [round(min(times), 3), round(max(times), 3)],
            "rounds": len(rounds),
        }
        if SHAPES[shape].device == "cuda":
            row["floor_seconds"] = floor_seconds(name, SHAPES[shape])
        rows.append(row)
        spread = f"({min(times):.2f}–{max(times):.2f})"
        print(
            f"{name:<12}{row['seconds_median']:>9.3f}{row['peak_memory_mb']:>8.0f}{row['ratio_time']:>9.2f}"
            f"{spread:>15}{row['ratio_memory']:>10.2f}"
        )
    rows = [
        {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
    ]
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return rows


if __name__ == "__main__":
    main()
