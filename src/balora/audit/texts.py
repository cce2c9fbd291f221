"""A causal model on texts: its perplexity, its divergence from the base, and whether its outputs narrowed.

One pass over the texts gives per text, for base and tuned model alike, the nats of its tokens, the entropy of the
predictions and the effective rank of the logits, and between the two the divergence and the agreement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from balora.anchors import sample_anchors
from balora.audit.effective_rank import LogitRank, effective_rank
from balora.audit.metrics import Metric, measured
from balora.audit.models import Audited
from balora.errors import BALoraError
from balora.evaluation.metric import Units, ratio, ratio_of_sums
from balora.evaluation.perplexity import IGNORED, padded_batches, page_windows, page_words, text_windows
from balora.fused import TokenScorer
from balora.utils.progress import tracked

Windows = list[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class TextSet:
    """Texts, cut into windows that the model takes.

    Attributes:
        name: Name of the texts in the audit.
        windows: Ids and labels of each text's windows, the latter perhaps one longer; see `padded_batches`.
        sizes: Number of each text's tokens, or words, that its nats are divided by.
        per: Name of the metric: `perplexity` per token, or `word_perplexity`.
    """

    name: str
    windows: list[Windows]
    sizes: np.ndarray
    per: str = "perplexity"


def user_texts(audited: Audited, name: str, texts: Sequence[str], max_length: int | None) -> TextSet:
    """Cut texts as `balora.evaluation.perplexity.perplexity` does: each token but the first is predicted once.

    Raises:
        BALoraError: If no text has two tokens.
    """
    tokens = [audited.tokenizer(text, verbose=False)["input_ids"] for text in texts]
    windows = [list(text_windows(ids, audited.context(max_length))) for ids in tokens if len(ids) > 1]
    if not windows:
        raise BALoraError(f"{name}: no text of at least two tokens")
    sizes = [sum(_counted(labels) for _, labels in text) for text in windows]
    return TextSet(name, windows, np.array(sizes))


def wikitext2(audited: Audited, pages: Sequence[str], max_length: int | None) -> TextSet:
    """Cut pages of WikiText-2 as `balora.evaluation.perplexity` does; their perplexity is per word."""
    windows = [list(page_windows(audited.tokenizer, page, audited.context(max_length))) for page in pages]
    return TextSet("WikiText-2", windows, np.array([page_words(page) for page in pages]), "word_perplexity")


def own_texts(audited: Audited, count: int, length: int, seed: int) -> TextSet:
    """Sample texts from the base without a prompt, so that no corpus is needed."""
    length = audited.context(length)
    with audited.as_base() as base:
        anchors = sample_anchors(base, audited.tokenizer, count=count, length=length, seed=seed)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(anchors.input_ids, anchors.attention_mask, strict=True)]
    sizes = np.array([len(ids) - 1 for ids in rows])
    return TextSet("text that the base wrote", [[(ids, ids)] for ids in rows], sizes)


@torch.no_grad()
def measure_texts(audited: Audited, texts: TextSet, *, batch_size: int, seed: int = 0) -> list[Metric]:
    """Return the metrics of one pass over the texts.

    Args:
        audited: A causal language model and its base.
        texts: At least one of them.
        batch_size: Windows at a time; fewer where they have more than `TOKEN_BUDGET` tokens together.
        seed: Seed of the bootstrap.

    Returns:
        `perplexity` (`word_perplexity` of WikiText-2), `entropy` and `effective_rank` of both
        models; `kl_to_base` and `top1_agreement` between the two.
    """
    owners = torch.tensor([number for number, windows in enumerate(texts.windows) for _ in windows])
    flat = [window for windows in texts.windows for window in windows]
    base = None if audited.alone else audited.base_reader()
    score = TokenScorer(audited.tuned, base, entropy=True)
    sums: dict[str, np.ndarray] = {}
    ranks: dict[str, Callable[[Tensor], float]] = {}

    def add(name: str, texts_of: Tensor, values: Tensor) -> None:
        own = np.bincount(texts_of.numpy(), values.double().cpu().numpy(), len(texts.windows))
        sums[name] = sums.get(name, 0.0) + own

    for part, batch in tracked([*padded_batches(flat, batch_size)], "reading texts"):
        inputs = {name: value.to(audited.tuned.device) for name, value in batch.items()}
        targets = inputs.pop("labels")[:, 1:]  # (B, S)
        for rows, read, hidden in score.passes(inputs):
            counted = targets[rows] != IGNORED
            scores = score.of_counted(hidden, targets[rows], counted)
            texts_of_rows = owners[part][rows]
            texts_of = texts_of_rows[counted.nonzero()[:, 0].cpu()]  # (M,)
            add("tokens", texts_of, torch.ones_like(texts_of))
            add("windows", texts_of_rows, torch.ones_like(texts_of_rows))
            if base is not None:
                add("kl", texts_of, scores.divergence)
                add("agreeing", texts_of, scores.top1 == scores.teacher.top1)
            for side, own, reader, states in zip(
                ("tuned", "base"), (scores, scores.teacher), (score.student, base), hidden, strict=False
            ):
                add(f"{side} nats", texts_of, -own.log_p)
                add(f"{side} entropy", texts_of, own.entropy)
                rank = ranks.setdefault(side, effective_rank if reader.head is None else LogitRank(reader.head))
                masks = read["attention_mask"].bool()
                each = [rank(row[mask]) for row, mask in zip(states, masks, strict=True)]
                add(f"{side} rank", texts_of_rows, torch.tensor(each))
    if base is not None:
        sums["kl"] = sums["kl"].clip(min=0)  # rounding can take a sum of zeros below 0

    def figure(name: str, units: Callable[[str], Units]) -> Metric:
        base = None if audited.alone else units("base")
        return measured(name, units("tuned"), base, on=texts.name, unit="texts", seed=seed)

    figures = [
        figure(texts.per, lambda side: _exp_ratio(sums[f"{side} nats"], texts.sizes)),
        figure("entropy", lambda side: ratio(sums[f"{side} entropy"], sums["tokens"])),
        figure("effective_rank", lambda side: ratio(sums[f"{side} rank"], sums["windows"])),
    ]
    if not audited.alone:
        between = {"kl_to_base": "kl", "top1_agreement": "agreeing"}
        figures += [
            measured(name, ratio(sums[key], sums["tokens"]), on=texts.name, unit="texts", seed=seed)
            for name, key in between.items()
        ]
    return figures


def _exp_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Units:
    return Units(ratio(numerators, denominators).columns, lambda sums: np.exp(ratio_of_sums(sums)))


def _counted(labels: list[int]) -> int:
    return sum(label != IGNORED for label in labels[1:])
