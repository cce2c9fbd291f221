"""What SeLoRA's gate costs beside LoRA of the same rank: time and peak memory of a step, parameters.

    python benchmarks/gate_cost.py --shape small

A T5 with random weights, adapters on all attention projections, random tokens and sentence vectors. Every contender is
a process of its own, all in turn; ratios are to balora's LoRA in the same round, medians over rounds. `t5-base` is the
published setting's size.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from adapter_steps import report, rounds_of, time_steps
from processes import write_rows
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from balora import BALoraConfig, get_balora_model

SENTENCE_DIM = 384  # all-MiniLM-L6-v2's
NO_WEIGHTS = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
SELORA = {"method": "selora", "sentence_dim": SENTENCE_DIM}
#: By name, what is set beside rank and targets; the first is 1.0.
CONTENDERS = {
    "lora": {"method": "lora"},
    "selora": SELORA,
    "selora-no-loss": {**SELORA, "semantic_weight": 0.0},
    "selora-per-layer": {**SELORA, "gate": "per_layer"},
}


@dataclass(frozen=True)
class Shape:
    """A T5, and a batch for it."""

    d: int
    layers: int
    heads: int
    vocabulary: int
    batch: int
    length: int
    target_length: int
    r: int = 8


SHAPES = {
    "small": Shape(256, 4, 4, 8000, 8, 256, 16),
    "t5-base": Shape(768, 12, 12, 32128, 8, 512, 32),
}


def measure(contender: str, shape: Shape, steps: int) -> dict[str, float]:
    """As `time_steps`."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = T5Config(
        d_model=shape.d, d_kv=shape.d // shape.heads, d_ff=4 * shape.d, num_layers=shape.layers,
        num_heads=shape.heads, vocab_size=shape.vocabulary, dropout_rate=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    settings = {"r": shape.r, "target_modules": ["q", "k", "v", "o"], **NO_WEIGHTS, **CONTENDERS[contender]}
    model = get_balora_model(T5ForConditionalGeneration(config), BALoraConfig(**settings)).train()
    model.set_progress(0.5)
    batch = _batch(shape)
    if contender == "lora":
        del batch["sentence_embeds"]
    return time_steps(model, batch, steps)


def _batch(shape: Shape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, shape.vocabulary, (shape.batch, shape.length), generator=generator)
    labels = torch.randint(1, shape.vocabulary, (shape.batch, shape.target_length), generator=generator)
    s = torch.randn(shape.batch, SENTENCE_DIM, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "sentence_embeds": s}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["small"])
    parser.add_argument("--steps", type=int, default=6, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=4, help="processes of each contender")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, SHAPES[options.shape[0]], options.steps)))
        return
    for shape in options.shape:
        runs = rounds_of(__file__, CONTENDERS, options.rounds, "--shape", shape, "--steps", str(options.steps))
        print(f"\n{shape}: {SHAPES[shape]}")
        write_rows(options.output, report(shape, runs))


if __name__ == "__main__":
    main()
