"""Processor time of the student's body on anchors and rows in one batch, beside two passes of its own for each.

    python benchmarks/joined_pass.py

Forward and backward of `small` with LoRA on four rows and two anchors of one length, on one thread, in pairs. Prints
the ratio of each pair and, as JSON, the median and range of all but the first.
"""

import argparse
import json
import statistics
import time

import torch
from contenders import SHAPES, TARGETS, base_model
from torch import Tensor

from balora import BALoraConfig, get_balora_model
from balora.fused import head_aside
from balora.model.regularizers import unregularized


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    pairs, shape = parser.parse_args().pairs, SHAPES["small"]
    torch.set_num_threads(1)
    config = BALoraConfig(method="lora", r=shape.r, lora_alpha=shape.r, target_modules=TARGETS, **unregularized())
    model = get_balora_model(base_model(shape), config).train()
    base = model.get_base_model()
    ids = torch.randint(shape.vocabulary, (shape.batch + shape.batch // 2, shape.length))

    def seconds(*batches: Tensor) -> float:
        start, total = time.process_time(), 0
        for batch in batches:
            with head_aside(base) as received:
                base(input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)
            total = total + received[0].square().mean()
        total.backward()
        return time.process_time() - start

    ratios = []
    for _ in range(pairs):
        apart = seconds(ids[: shape.batch], ids[shape.batch :])
        ratios.append(seconds(ids) / apart)
        print(f"{ratios[-1]:.3f}", flush=True)
    kept = ratios[1:]
    print(json.dumps({"joined_over_apart": round(statistics.median(kept), 4), "range": [min(kept), max(kept)]}))


if __name__ == "__main__":
    main()
