"""Cost of self-anchors and the counterfactual teacher: time and memory of a step beside LoRA's.

    python benchmarks/anchor_cost.py

A Llama with random weights, rows and anchors of random tokens, all of one length, one token in twenty a pronoun. With
`anchor_share` 0.5 the student reads two anchors beside each four rows. The teacher has read every anchor before the
timed steps, as it has for most of a training; it reads the rows in every step, and with swaps twice if they have a
pronoun, except in the contenders that end in `-again`: there it has read them too, as in a second epoch. Each
contender is a process of its own, all in turn. Ratios are to LoRA in the same round, as medians over rounds.
"""

import argparse
import json
from pathlib import Path

import torch
from adapter_steps import report, rounds_of, time_steps
from contenders import LAMBDA, SHAPES, TARGETS, Shape, base_model
from processes import write_rows
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from balora import BALoraConfig, get_balora_model
from balora.anchors import Anchors
from balora.counterfactual import Swaps, read_word_groups
from balora.model.anchor_term import teach_anchors

SHAPE = SHAPES["small"]
BA_LORA = {
    "method": "ba-lora",
    "pissa_niter": 4,  # the start is not timed
    **{f"{term}_weight": weight for term, weight in LAMBDA.items()},
    **{f"{term}_schedule": "constant" for term in LAMBDA},
}
ANCHORS = {"anchor_weight": 0.5, "anchor_share": 0.5}
#: By name, what is set beside rank and targets; the first is 1.0.
CONTENDERS = {
    "lora": {"method": "lora"},
    "lora+anchors": {"method": "lora+anchors", **ANCHORS},
    "lora+anchors-quarter": {"method": "lora+anchors", **ANCHORS, "anchor_share": 0.25},
    "ba-lora": BA_LORA,
    "ba-lora+anchors": {**BA_LORA, **ANCHORS},
    "ba-lora+anchors-q25": {**BA_LORA, **ANCHORS, "sample_rate": 0.25},
    "ba-lora+anchors+swaps": {**BA_LORA, **ANCHORS, "counterfactual_words": "gender"},
    "ba-lora+anchors-again": {**BA_LORA, **ANCHORS},
    "ba-lora+anchors+swaps-again": {**BA_LORA, **ANCHORS, "counterfactual_words": "gender"},
}
ANCHOR_TEXTS = 16
PRONOUNS = ["he", "she"]


def measure(contender: str, shape: Shape, steps: int) -> dict[str, float]:
    """As `time_steps`."""
    torch.set_num_threads(2)
    config = BALoraConfig(r=shape.r, lora_alpha=shape.r, target_modules=TARGETS, **CONTENDERS[contender])
    generator = torch.Generator().manual_seed(1)
    ids = _texts(ANCHOR_TEXTS, shape, generator)
    anchors = Anchors(ids, torch.ones_like(ids)) if config.anchor_weight else None
    model = get_balora_model(base_model(shape), config, anchors=anchors).train()
    model.set_progress(0.5)
    model.cache_teacher(rows=contender.endswith("-again"))
    if config.counterfactual_words:
        model.set_swaps(Swaps(read_word_groups(config.counterfactual_words), _tokenizer(shape)))
    if config.anchor_weight:
        for _ in range(10):  # ten times as many as there are, drawn with replacement: surely each of them
            teach_anchors(model, model.anchors, round(ANCHOR_TEXTS / config.anchor_share), {"anchor": 1.0}, fused=True)
    ids = _texts(shape.batch, shape, generator)
    return time_steps(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}, steps)


def _texts(rows: int, shape: Shape, generator: torch.Generator) -> torch.Tensor:
    ids = torch.randint(len(PRONOUNS), shape.vocabulary, (rows, shape.length), generator=generator)
    pronoun = torch.rand(ids.shape, generator=generator) < 0.05
    return torch.where(pronoun, ids % len(PRONOUNS), ids)


def _tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    words = [*PRONOUNS, *(f"word{i}" for i in range(len(PRONOUNS), shape.vocabulary))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contender")
    parser.add_argument("--output", type=Path, help="file to append the lines of JSON to, with versions")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker, SHAPE, options.steps)))
        return
    runs = rounds_of(__file__, CONTENDERS, options.rounds, "--steps", str(options.steps))
    print(f"\n{SHAPE}")
    write_rows(options.output, report("small", runs))


if __name__ == "__main__":
    main()
