"""What measuring costs beside training: held-out loss and drift together, on the rows of a training step of BA-LoRA.

    python benchmarks/evaluation_cost.py

A small Llama with random weights and Qwen's vocabulary, 8 rows of 2,048 random tokens. Training has every term of the
published weights on, and the teacher on every row. Each contender is a process of its own, both in turn; ratios are to
training in the same round, medians over rounds. Memory includes weights, libraries and, in training, AdamW's moments.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from adapter_steps import Figures, report, rounds_of, time_steps
from contenders import Shape, balora, batch_of
from processes import resident_mb, write_rows

from balora.model.drift import measure_loss_and_drift
from balora.utils.modules import trainable_parameters

SHAPE = Shape(256, 4, 151936, 8, 2048, 16, 688)
WARM_UP = 1


def training(shape: Shape, steps: int) -> Figures:
    """Median seconds of a training step, and peak megabytes."""
    model, _ = balora(shape)
    return time_steps(model, batch_of(shape), steps, WARM_UP)


def evaluation(shape: Shape, steps: int) -> Figures:
    """Median seconds of held-out loss and drift on one batch, and peak megabytes."""
    model, _ = balora(shape)
    seconds = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        measure_loss_and_drift(model, [batch_of(shape)])
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "peak_memory_mb": resident_mb(),
        "parameters": trainable_parameters(model),
    }


#: The first is 1.0.
CONTENDERS = {"training": training, "evaluation": evaluation}


def measure(contender: str, shape: Shape, steps: int) -> Figures:
    """Run a contender in this process."""
    torch.set_num_threads(2)
    return CONTENDERS[contender](shape, steps)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--batch", type=int, default=SHAPE.batch, help="rows of 2,048 tokens")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = replace(SHAPE, batch=options.batch)
    if options.worker:
        print(json.dumps(measure(options.worker, shape, options.steps)))
        return
    runs = rounds_of(
        __file__, CONTENDERS, options.rounds, "--steps", str(options.steps), "--batch", str(options.batch)
    )
    print(f"\n{shape}")
    write_rows(options.output, report("evaluation", runs))


if __name__ == "__main__":
    main()
