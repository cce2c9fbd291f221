"""What aligning the adapters of eight tasks costs: time of a training step with the alignment, and without.

    python benchmarks/alignment_cost.py

A Llama with random weights and 200 adapted layers (q, k, v and o of 50 blocks), an adapter of rank 8 for each task in
every one of them, and a row of each task in every batch. Each contender is a process of its own, all in turn; ratios
are to the same model without alignment in the same round, medians over rounds. What two such processes differ by is
more than the term itself, so that it is timed alone too, forward and backward, in every process that has it.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from adapter_steps import report, rounds_of, time_steps
from peft import PeftModel
from processes import write_rows
from transformers import LlamaConfig, LlamaForCausalLM

from balora import BALoraConfig, get_balora_model
from balora.adapters.task_adapters import alignment_term

#: Steps before the first that is timed: of these long steps the fourth is still faster than the third.
WARM_UP = 6
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


def measure(contender: str, shape: Shape, steps: int) -> dict[str, float]:
    """As `time_steps`, and `term_seconds`, the median of the alignment alone."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.d, intermediate_size=3 * shape.d, num_hidden_layers=shape.blocks,
        num_attention_heads=8, vocab_size=shape.vocabulary, max_position_embeddings=shape.length,
    )  # fmt: skip
    names = [f"task_{i}" for i in range(shape.tasks)]
    settings = {"task_names": names, "alignment_weight": CONTENDERS[contender], **NO_WEIGHTS}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    adapter = BALoraConfig(method="lora+reg", r=shape.r, target_modules=targets, **settings)
    model = get_balora_model(LlamaForCausalLM(config), adapter).train()
    ids = torch.randint(1, shape.vocabulary, (shape.tasks, shape.length))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    found = time_steps(model, {**batch, "task_ids": torch.arange(shape.tasks)}, steps, warm_up=WARM_UP)
    term = _time_term(model, names, steps) if CONTENDERS[contender] else 0.0
    return {**found, "term_seconds": term}


def _time_term(model: PeftModel, names: list[str], times: int) -> float:
    seconds = []
    for _ in range(1 + times):
        start = time.perf_counter()
        alignment_term(model, names).backward()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, SHAPE, options.steps)))
        return
    runs = rounds_of(__file__, CONTENDERS, options.rounds, "--steps", str(options.steps))
    print(f"\n{SHAPE}")
    rows = report("200-layers", runs)
    term = statistics.median(run["term_seconds"] for run in runs["aligned"])
    print(f"the term alone: {term:.3f} s, {term / rows[0]['seconds']:.1%} of a step without it")
    write_rows(options.output, [rows[0], {**rows[1], "term_seconds": round(term, 4)}])


if __name__ == "__main__":
    main()
