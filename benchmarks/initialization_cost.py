"""Time of PiSSA's start on the 210 matrices of a Llama of 135 M parameters (SmolLM2's shape), random weights.

    python benchmarks/initialization_cost.py

Each contender builds its model in a process of its own, all in turn; the time is that of adding the adapter, base
weights included. Prints a table and, for each contender, a line of JSON with stock PEFT's exact start as 1.0. CPU
seconds count the work of all threads, and are steadier than the clock on a busy machine.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from processes import in_fresh_process, in_turn, resident_mb, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from balora import BALoraConfig, get_balora_model

RANK = 16
#: Precision and `pissa_niter`, `None` for the exact start.
CONTENDERS = {
    "peft": (torch.float32, None),
    "exact": (torch.float32, None),
    "exact-bfloat16": (torch.bfloat16, None),
    "randomized": (torch.float32, 4),
    "randomized-bfloat16": (torch.bfloat16, 4),
}


def measure(contender: str, layers: int) -> dict[str, float]:
    """Return the seconds of adding the adapter, by the clock and of the CPU, and peak megabytes."""
    dtype, niter = CONTENDERS[contender]
    torch.manual_seed(0)
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
    config = LlamaConfig(**shape, num_hidden_layers=layers, vocab_size=49152, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).to(dtype)
    settings = {"r": RANK, "lora_alpha": RANK, "target_modules": "all-linear"}
    clock, cpu = time.perf_counter(), time.process_time()
    if contender == "peft":
        get_peft_model(model, LoraConfig(init_lora_weights="pissa", **settings))
    else:
        get_balora_model(model, BALoraConfig(method="pissa", pissa_niter=niter, **settings))
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "peak_memory_mb": resident_mb(),
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--layers", type=int, default=30, help="blocks of seven matrices")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, options.layers)))
        return
    contenders = list(dict.fromkeys(["peft", *options.contender]))
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for name in in_turn(contenders, options.rounds):
        runs[name].append(in_fresh_process(__file__, "--worker", name, "--layers", str(options.layers)))
    write_rows(options.output, report(runs))


def report(runs: dict[str, list[dict[str, float]]]) -> list[dict[str, object]]:
    """Print the table and a line of JSON for each contender. Ratios are medians of the rounds' own ratios."""
    print(f"{'contender':<21}{'seconds':>9}{'CPU s':>8}{'MB':>7}{'× time':>8}{'× CPU':>7}{'(range)':>13}{'× mem.':>8}")
    rows = []
    for name, rounds in runs.items():
        ratios = {
            measured: [run[measured] / base[measured] for run, base in zip(rounds, runs["peft"], strict=True)]
            for measured in rounds[0]
        }
        cpu = ratios["cpu_seconds"]
        row = {
            "contender": name,
            **{measured: round(statistics.median(run[measured] for run in rounds), 3) for measured in rounds[0]},
            "ratio_time": round(statistics.median(ratios["seconds"]), 3),
            "ratio_cpu_time": round(statistics.median(cpu), 3),
            "ratio_cpu_time_range": [round(min(cpu), 3), round(max(cpu), 3)],
            "ratio_memory": round(statistics.median(ratios["peak_memory_mb"]), 3),
            "rounds": len(rounds),
        }
        rows.append(row)
        spread = f"({min(cpu):.2f}–{max(cpu):.2f})"
        print(
            f"{name:<21}{row['seconds']:>9.2f}{row['cpu_seconds']:>8.2f}{row['peak_memory_mb']:>7.0f}"
            f"{row['ratio_time']:>8.2f}{row['ratio_cpu_time']:>7.2f}{spread:>13}{row['ratio_memory']:>8.2f}"
        )
    print(*map(json.dumps, rows), sep="\n", flush=True)
    return rows


if __name__ == "__main__":
    main()
