"""Time of an epoch of classification: plain LoRA, and ours with and without the cache of teacher features.

    python benchmarks/classification_epoch.py

A BERT of MiniLM's shape with random weights (6 layers, d = 384), 4 batches of 32 × 64 tokens in a new order each
epoch, LoRA r = 8 on all linear layers, λ as published for GLUE. Each contender runs in a process of its own, in turn;
ratios to stock PEFT are medians over rounds. Prints a table and a line of JSON for each contender.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from processes import in_fresh_process, in_turn, resident_mb, write_rows
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from balora import BALoraConfig, get_balora_model

ROWS, BATCH, LENGTH, EPOCHS = 128, 32, 64, 4
ADAPTER = {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"}


def base_model() -> BertForSequenceClassification:
    """The same weights each time."""
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    return BertForSequenceClassification(BertConfig(**shape, num_labels=2))


def plain_lora() -> nn.Module:
    """Stock PEFT under Transformers' own loss."""
    return get_peft_model(base_model(), LoraConfig(**ADAPTER, task_type="SEQ_CLS"))


def balora(megabytes: float) -> nn.Module:
    """LoRA with the three regularizers."""
    return get_balora_model(base_model(), BALoraConfig(method="lora+reg", teacher_cache_mb=megabytes, **ADAPTER))


CONTENDERS = {"lora": plain_lora, "balora": lambda: balora(512), "balora-no-cache": lambda: balora(0)}


def measure(contender: str) -> dict[str, float]:
    """Seconds of the first epoch and, as a median, of the later ones; peak megabytes of the process."""
    torch.set_num_threads(2)
    model = CONTENDERS[contender]().train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 30000, (ROWS, LENGTH), generator=generator)
    data = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(ROWS) % 2}
    step(model, optimizer, {key: value[:2] for key, value in data.items()})  # threads and allocator wake up
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for rows in torch.randperm(ROWS, generator=generator).split(BATCH):
            step(model, optimizer, {key: value[rows] for key, value in data.items()})
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "later": statistics.median(seconds[1:]), "peak_memory_mb": resident_mb()}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]) -> None:
    """One optimizer step."""
    model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes of each contender")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for name in in_turn(CONTENDERS, options.rounds):
        runs[name].append(in_fresh_process(__file__, "--worker", name))
    print(
        f"{'contender':<17}{'first epoch':>12}{'later':>8}{'× first':>9}{'× later':>9}{'(range)':>14}{'× memory':>10}"
    )
    rows = []
    for name, rounds in runs.items():
        ratios = {
            key: [run[key] / base[key] for run, base in zip(rounds, runs["lora"], strict=True)] for key in rounds[0]
        }
        row = {key: statistics.median(run[key] for run in rounds) for key in rounds[0]}
        row |= {f"ratio_{key}": statistics.median(values) for key, values in ratios.items()}
        spread = f"({min(ratios['later']):.2f}–{max(ratios['later']):.2f})"
        print(
            f"{name:<17}{row['first']:>12.2f}{row['later']:>8.2f}{row['ratio_first']:>9.2f}{row['ratio_later']:>9.2f}"
            f"{spread:>14}{row['ratio_peak_memory_mb']:>10.2f}"
        )
        rows.append(
            {
                "contender": name,
                **{key: round(value, 4) for key, value in row.items()},
                "ratio_later_range": [round(min(ratios["later"]), 3), round(max(ratios["later"]), 3)],
                "rounds": len(rounds),
            }
        )
    print(*map(json.dumps, rows), sep="\n")
    write_rows(options.output, rows)


if __name__ == "__main__":
    main()
