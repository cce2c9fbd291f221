"""A causal model on texts: its perplexity, its divergence from the base, and whether its outputs narrowed.

One pass over the texts gives per text, for base and tuned model alike, the nats of its tokens, the entropy of the
predictions and the effective rank of the logits, and between the two the divergence and the agreement.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from balora.anchors import sample_anchors
from balora.audit.metrics import Metric, measured
from balora.audit.models import Audited
from balora.errors import BALoraError
from balora.evaluation.metric import Units, ratio, ratio_of_sums
from balora.evaluation.perplexity import IGNORED, padded_batches, page_windows, page_words, text_windows

#: Tokens of a batch, which bounds the memory that logits of a large vocabulary take.
TOKENS = 4096

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
        batch_size: Windows at a time; fewer where they have more than `TOKENS` together.
        seed: Seed of the bootstrap.

    Returns:
        `perplexity` (`word_perplexity` of WikiText-2), `entropy` and `effective_rank` of both
        models; `kl_to_base` and `top1_agreement` between the two.
    """
    owners = [number for number, windows in enumerate(texts.windows) for _ in windows]
    flat = [window for windows in texts.windows for window in windows]
    sums: dict[str, np.ndarray] = {}

    def add(name: str, owner: int, value: float) -> None:
        sums.setdefault(name, np.zeros(len(texts.windows)))[owner] += value

    for part in _alike([len(ids) for ids, _ in flat], batch_size):
        [batch] = padded_batches([flat[i] for i in part], len(part))
        labels = batch.pop("labels")
        before, after = (output.logits for output in audited.both(**batch))
        for row, place in enumerate(part):
            targets = labels[row, 1:].to(after.device)  # (S,)
            counted = (targets != IGNORED).nonzero()[:, 0]
            owner = owners[place]
            p, q = (F.log_softmax(logits[row, counted].float(), -1) for logits in (before, after))  # (M, V)
            add("tokens", owner, len(counted))
            add("windows", owner, 1)
            add("kl", owner, (p.exp() * (p - q)).sum().clamp(min=0).item())
            add("agreeing", owner, (p.argmax(-1) == q.argmax(-1)).sum().item())
            read = batch["attention_mask"][row].bool().to(after.device)
            for side, log_p, logits in (("base", p, before), ("tuned", q, after)):
                add(f"{side} nats", owner, -log_p.gather(1, targets[counted, None]).sum().item())
                add(f"{side} entropy", owner, -(log_p.exp() * log_p).sum().item())
                add(f"{side} rank", owner, effective_rank(logits[row][read]))

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


def effective_rank(matrix: Tensor) -> float:
    """Return exp(−Σ p_i log p_i), p_i = σ_i / Σ_j σ_j, of a matrix's singular values, from 1 to its smaller side.

    Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality".

    Args:
        matrix: `(M, V)`, not 0.
    """
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.distributions.Categorical(probs=singular).entropy().exp().item()


def _alike(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Yield batches of windows of similar length, by their indices."""
    part: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if len(part) == batch_size or (part and lengths[place] * (len(part) + 1) > TOKENS):
            yield part
            part = []
        part.append(place)
    yield part


def _exp_ratio(numerators: np.ndarray, denominators: np.ndarray) -> Units:
    return Units(ratio(numerators, denominators).columns, lambda sums: np.exp(ratio_of_sums(sums)))


def _counted(labels: list[int]) -> int:
    return sum(label != IGNORED for label in labels[1:])
