"""What aligning the adapters of eight tasks costs: time of a training step with the alignment, and without.

    python benchmarks/alignment_cost.py

A Llama with random weights and 200 adapted layers (q, k, v and o of 50 blocks), an adapter of rank 8 for each task in
every one of them, and a row of each task in every batch. A round is a fresh process that takes steps of both kinds in
turn, after some that are not timed; ratios are to the median step without alignment in the same process, medians over
rounds.
"""

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from adapter_steps import report, time_steps
from processes import in_fresh_process, write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from balora import BALoraConfig, get_balora_model

#: Steps of each kind before the first that is timed: memory is asked of the system once.
WARM_UP = 2
NO_WEIGHTS = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
#: λ of the alignment by name; the first is 1.0.
CONTENDERS = {"unaligned": 0.0, "aligned": 0.1}


@dataclass(frozen=True)
class Shape:
    """A Llama of so many blocks, and a batch for it: a row for each task."""

    d: int
    blocks: int
    vocabulary: int
    length: int
    tasks: int = 8
    r: int = 8


SHAPE = Shape(d=512, blocks=50, vocabulary=2000, length=256)


def measure(shape: Shape, pairs: int) -> dict[str, dict[str, float]]:
    """Of each contender what `time_steps` returns, the median over its steps."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.d, intermediate_size=3 * shape.d, num_hidden_layers=shape.blocks,
        num_attention_heads=8, vocab_size=shape.vocabulary, max_position_embeddings=shape.length,
    )  # fmt: skip
    names = [f"task_{i}" for i in range(shape.tasks)]
    settings = {"task_names": names, "alignment_weight": max(CONTENDERS.values()), **NO_WEIGHTS}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = BALoraConfig(method="lora", r=shape.r, target_modules=targets, **settings)
    model = get_balora_model(LlamaForCausalLM(config), adapter).train()
    ids = torch.randint(1, shape.vocabulary, (shape.tasks, shape.length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    batch["task_ids"] = torch.arange(shape.tasks)
    given, runs = model.balora_config, {name: [] for name in CONTENDERS}
    for name in [name for _ in range(pairs) for name in CONTENDERS]:
        model.balora_config = replace(given, alignment_weight=CONTENDERS[name])
        runs[name].append(time_steps(model, batch, 1, warm_up=WARM_UP if not runs["aligned"] else 0))
    return {
        name: {**found[0], "seconds": statistics.median(run["seconds"] for run in found)}
        for name, found in runs.items()
    }


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="timed steps of each kind in a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(SHAPE, options.pairs)))
        return
    found = [in_fresh_process(__file__, "--worker", "--pairs", str(options.pairs)) for _ in range(options.rounds)]
    print(f"\n{SHAPE}")
    write_rows(options.output, report("200-layers", {name: [run[name] for run in found] for name in CONTENDERS}))


if __name__ == "__main__":
    main()
