"""Time of the chunked pass over the head on one thread: its matrix products, and its passes over the logits.

    python benchmarks/head_passes.py

Three products with the head (the student's logits, the teacher's, the gradient of the hidden states), and
`differentiate_rows` on the logits, with task loss, consistency and entropy. Medians, in milliseconds for a million
logits.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from processes import write_rows

from balora.fused.row_gradients import RowObjective, RowWeights, differentiate_rows


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])


def measure(vocabulary: int, d: int, rows: int, repeats: int) -> dict[str, float]:
    """Return the time of the products and of the passes, per million logits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, d), 0.02 * torch.randn(vocabulary, d)
    z, taught = torch.randn(rows, vocabulary), torch.randn(rows, vocabulary)
    shares = torch.full((rows,), 1 / rows)
    weights = RowWeights(torch.zeros(rows, dtype=torch.long), shares, shares, shares)
    objective = RowObjective(temperature=2.0, top_k=20)
    millions = rows * vocabulary / 1e6
    forward = milliseconds(lambda: torch.mm(hidden, weight.T, out=z), repeats)
    backward = milliseconds(lambda: torch.mm(z, weight), repeats)
    passes = milliseconds(lambda: differentiate_rows(z.normal_(), taught, weights, objective), repeats)
    drawing = milliseconds(z.normal_, repeats)
    return {"products_ms": (2 * forward + backward) / millions, "passes_ms": (passes - drawing) / millions}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=512, help="width of the hidden states")
    parser.add_argument("--rows", type=int, default=256, help="tokens of a chunk")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    options = parser.parse_args()
    rows = []
    for vocabulary in (32_000, 151_936):
        found = measure(vocabulary, options.d, options.rows, options.repeats)
        found = {name: round(value, 2) for name, value in found.items()}
        rows.append({"vocabulary": vocabulary, "d": options.d, "rows": options.rows, **found})
        print(json.dumps(rows[-1]), flush=True)
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
