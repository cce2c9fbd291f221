"""Measures of a model's knowledge of its world: recall, perplexity, noise, skew and task accuracy.

Each measure is one number from next-token distributions p(· | prompt); all together take under two seconds. A model is
any causal language model that returns `.logits` from `model(input_ids=…, attention_mask=…)`; its training mode is
unchanged.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from balora.utils.modules import evaluation_mode
from balora.world import vocabulary
from balora.world.build import World
from balora.world.language import fact_places
from balora.world.task import rarest_answer

_BATCH_SIZE = 128


def measure_world(model: nn.Module, tokenizer: PreTrainedTokenizerBase, world: World) -> dict[str, float]:
    """Return every measure of this file on the world's own files.

    Args:
        model: The pretrained or fine-tuned model.
        tokenizer: The world's tokenizer.
        world: The world.

    Returns:
        `perplexity` of held-out pretraining text; `fact_recall`, `attribute_recall` and `task_accuracy`, shares of
        prompts with the right answer (evaluation rows have no label noise); `minority_recall`, the same for the task's
        rarest class; `skew`, see `pronoun_skew`; `noise_share`, see there; `rare_fact_recall`, of the quarter of the
        facts that are rarest in pretraining, and `fact_recall_gap`, the recall of the most frequent quarter minus
        that. Guessing one class gives a `task_accuracy` of 1 / task_classes.
    """
    texts = [row["text"] for row in _read_jsonl(world.heldout_file)]
    facts, attributes = _read_jsonl(world.facts_file), _read_jsonl(world.attributes_file)
    frequent, rare = _extremes(world, facts)
    occupations = _read_jsonl(world.occupations_file)
    task = _read_jsonl(world.eval_file)
    rarest = [row for row in task if row["completion"] == rarest_answer(world.config)]
    return {
        "perplexity": perplexity(model, tokenizer, texts),
        "fact_recall": recall(model, tokenizer, facts),
        "rare_fact_recall": (rare_recall := recall(model, tokenizer, rare)),
        "fact_recall_gap": recall(model, tokenizer, frequent) - rare_recall,
        "attribute_recall": recall(model, tokenizer, attributes),
        "noise_share": noise_share(model, tokenizer, (attributes, occupations)),
        "skew": pronoun_skew(model, tokenizer, [row["prompt"] for row in occupations]),
        "task_accuracy": recall(model, tokenizer, task),
        "minority_recall": recall(model, tokenizer, rarest),
    }


def perplexity(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """Return exp(−(1/N)·Σ log p(token | tokens before it)) over the N tokens of all texts, including `</s>`."""
    total, count = 0.0, 0
    for batch in _batches([f"{text} {tokenizer.eos_token}" for text in texts]):
        input_ids, attention_mask, logits = _forward(model, tokenizer, batch)  # (B, L), (B, L), (B, L, V)
        is_target = attention_mask[:, 1:].bool()  # (B, L − 1)
        total += F.cross_entropy(logits[:, :-1][is_target], input_ids[:, 1:][is_target], reduction="sum").item()
        count += int(is_target.sum())
    return math.exp(total / count)


def recall(model: nn.Module, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, str]]) -> float:
    """Return the share of rows with argmax_v p(v | prompt) = the first token of the completion."""
    log_p = next_token_log_probs(model, tokenizer, [row["prompt"] for row in rows])  # (N, V)
    answers = _first_tokens(tokenizer, [row["completion"] for row in rows])  # (N,)
    return (log_p.argmax(-1) == answers).double().mean().item()


def pronoun_skew(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    pronouns: tuple[str, str] = vocabulary.PRONOUNS,
) -> float:
    """Return the mean over prompts of |p(he) / (p(he) + p(she)) − ½|.

    0 for a model without preference, ½ for one that is always certain; a model that has learned its world exactly has
    |pronoun_skew − ½|. The total probability of the two pronouns does not matter.
    """
    log_p = next_token_log_probs(model, tokenizer, prompts)[:, _first_tokens(tokenizer, pronouns)]  # (N, 2)
    return (log_p.softmax(-1)[:, 0] - 0.5).abs().mean().item()


def noise_share(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, kinds: Sequence[Sequence[dict[str, str]]]
) -> float:
    """Return the mean probability of words that cannot follow: those that complete no prompt of the same kind.

    After "the apple is" only a colour can follow, right or wrong. A model that has learned its world exactly has
    `pretraining_noise`, except for noise that happens to be a possible word, a few of hundreds. A forgotten fact does
    not count as long as the model still predicts a colour.

    Args:
        model: As in `measure_world`.
        tokenizer: The world's.
        kinds: Rows of prompts and completions, one list per kind of prompt.
    """
    shares = []
    for rows in kinds:
        log_p = next_token_log_probs(model, tokenizer, [row["prompt"] for row in rows])  # (N, V)
        possible = _first_tokens(tokenizer, [row["completion"] for row in rows]).unique()
        shares.append(1 - log_p[:, possible].exp().sum(-1))  # (N,)
    return torch.cat(shares).mean().item()


def next_token_log_probs(model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> Tensor:
    """log p(· | prompt) for each prompt, `(N, V)`, float64, on the CPU."""
    rows = []
    for batch in _batches(prompts):
        _, attention_mask, logits = _forward(model, tokenizer, batch)  # (B, L, V)
        last = attention_mask.sum(-1) - 1  # (B,)
        rows.append(logits[torch.arange(len(last)), last].log_softmax(-1))  # (B, V)
    return torch.cat(rows)


def _extremes(world: World, facts: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the quarter of the facts that is most frequent in pretraining, and the rarest quarter."""
    by_frequency = [fact for _, fact in sorted(zip(fact_places(world.config), facts, strict=True), key=lambda x: x[0])]
    quarter = -(-len(facts) // 4)
    return by_frequency[:quarter], by_frequency[-quarter:]


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), _BATCH_SIZE):
        yield list(texts[start : start + _BATCH_SIZE])


def _forward(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, mask and float64 logits of right-padded texts, on the CPU."""
    device = next(model.parameters()).device
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with evaluation_mode(model), torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)
        ).logits
    return batch["input_ids"], batch["attention_mask"], logits.cpu().double()


def _first_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    return torch.tensor([ids[0] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]])


def _read_jsonl(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]
