"""The regularizers: one table of all of them, their values on whole logits, and the sum that weights them.

To add one: its weight as a setting of `BALoraConfig`, an entry in `TERMS`, and a function. A mean over tokens needs
nothing else: the entry's `token_loss` is differentiated automatically, fused or not. A term of a batch's matrix also
has a line in `generation_terms` or `classification_terms`, a term of the adapters one in `BALoraModel._adapter_terms`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.config import BALoraConfig
from balora.fused import TokenTerm
from balora.losses import consistency_loss, covariance_diversity_loss, spectral_loss, topk_entropy_loss
from balora.losses.masking import select_rows
from balora.utils.distributed import gather_rows


@dataclass(frozen=True)
class Term:
    """A regularizer.

    Attributes:
        weight: The setting that holds its weight λ; at 0 the term is not computed.
        mean_of: What it is a mean of: `tokens` (examples in classification); `batch`, a function of a micro-batch's
            whole matrix of logits; `adapters`, the adapters' own weights; `weights`, the change of the model's;
            `extra pass`, another forward pass.
        schedule: The setting that holds λ's schedule; `None` for a constant λ.
        needs_teacher: Whether it reads the teacher's logits.
        token_loss: For a mean over tokens: from the student's logits `(m, V)` and the teacher's `(m, V)`, `None`
            unless `needs_teacher`, to a value for each token, `(m,)`. It takes `settings` by keyword, must treat rows
            independently, and is differentiated by `torch.func`. `None` where the gradient has a closed form
            (`balora.fused.row_gradients`).
        settings: Settings that `token_loss` takes.
        fraction: The share of the task's gradient that calibration aims at; `None` where calibration does not measure
            the term.
        no_gradient: Why the gradient may be zero, and the remedy, for calibration to report.
    """

    weight: str
    mean_of: Literal["tokens", "batch", "adapters", "weights", "extra pass"]
    schedule: str | None = None
    needs_teacher: bool = False
    token_loss: Callable[..., Tensor] | None = None
    settings: tuple[str, ...] = ()
    fraction: float | None = None
    no_gradient: str = "no gradient on these batches"


#: All regularizers, by the name that their component is logged under. BA-LoRA's paper sets calibration's fractions
#: without printing them. These are 5 : 1 : 1, as its weights for both tasks, and are small: pulling all one way
#: and doubled by the search, the terms would still be less than a third of the task's gradient.
TERMS: dict[str, Term] = {
    "consistency": Term(
        weight="consistency_weight",
        mean_of="tokens",
        schedule="consistency_schedule",
        needs_teacher=True,
        fraction=0.1,
        no_gradient="no gradient: the student still is the teacher; train some steps on the task alone first",
    ),
    "diversity": Term(
        weight="diversity_weight",
        mean_of="tokens",
        schedule="diversity_schedule",
        fraction=0.02,
        no_gradient="no gradient: outputs hardly differ yet (train more steps first), or it is constant (a single "
        "output, one example in a batch)",
    ),
    "spectral": Term(
        weight="spectral_weight",
        mean_of="batch",
        schedule="spectral_schedule",
        fraction=0.02,
        no_gradient="no gradient: it is constant (a single output, one example in a batch, or spectral_k at or above "
        "the number of classes with clip_spectral_k off)",
    ),
    "semantic": Term(weight="semantic_weight", mean_of="adapters"),
    "bias_path": Term(weight="bias_path_weight", mean_of="extra pass"),
    "anchor": Term(weight="anchor_weight", mean_of="extra pass"),
    "replay": Term(weight="replay_weight", mean_of="extra pass"),
    "ewc": Term(weight="ewc_weight", mean_of="weights"),
    "alignment": Term(weight="alignment_weight", mean_of="adapters"),
}


def turned_off(names: Iterable[str] | None = None) -> dict[str, float]:
    """Return the settings that turn terms off: by name, or all of them."""
    return {TERMS[name].weight: 0.0 for name in (TERMS if names is None else names)}


def regularizes_logits(config: BALoraConfig) -> bool:
    """Return whether a term of the logits has a weight."""
    return any(getattr(config, term.weight) for term in TERMS.values() if term.mean_of in ("tokens", "batch"))


def needs_teacher(weights: dict[str, float]) -> bool:
    """Return whether a term with a weight reads the teacher's logits."""
    return any(weights.get(name) for name, term in TERMS.items() if term.needs_teacher)


def token_terms(config: BALoraConfig, weights: dict[str, float]) -> dict[str, TokenTerm]:
    """Return the means over tokens that have a weight, with their λ and their settings bound."""
    terms = {}
    for name, term in TERMS.items():
        if term.mean_of == "tokens" and weights.get(name):
            settings = {setting: getattr(config, setting) for setting in term.settings}
            loss = None if term.token_loss is None else partial(term.token_loss, **settings)
            terms[name] = TokenTerm(weights[name], needs_teacher=term.needs_teacher, loss=loss)
    return terms


def weighted_sum(
    terms: dict[str, Tensor], share: Tensor | float, weights: dict[str, float], start: Tensor | float = 0.0
) -> tuple[Tensor | float, dict[str, Tensor]]:
    """Sum λ times this micro-batch's share of each term: the place where terms are weighted.

    Only the fused pass weights tokens itself, with the λ of `token_terms`, because it never has a term as a tensor to
    differentiate.

    Args:
        terms: Unweighted, scalars.
        share: This micro-batch's share of the accumulated batch.
        weights: λ of each term.
        start: What the sum starts from.

    Returns:
        The sum, and each term times the share, detached.
    """
    components = {name: share * term for name, term in terms.items()}
    total = start
    for name, component in components.items():
        total = total + weights[name] * component
    return total, {name: component.detach() for name, component in components.items()}


def generation_terms(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    mask: Tensor | None,
    picked: Tensor,
    config: BALoraConfig,
    weights: dict[str, float],
) -> dict[str, Tensor]:
    """Return the unweighted terms of next-token logits: the plain path, which the fused one is tested against.

    The spectral term is of the micro-batch's own M × V matrix or, with `gather_batch_terms`, of that of all processes;
    the others are means over tokens.

    Args:
        student_logits: `(B, S, V)`.
        teacher_logits: `(n, S, V)`, of the n sequences that the teacher saw; `None` where it saw none.
        mask: `(B, S)`, true for tokens that are not padding; `None` for all tokens.
        picked: `(B,)`, true for those n sequences. Each was picked with probability `config.sample_rate`, so dividing
            by it leaves the mean over all tokens unchanged on average.
        config: Temperature, direction, top_k, spectral_k, sample_rate, gather_batch_terms.
        weights: λ of each term; a term at 0 is not computed.
    """
    mask = torch.ones(student_logits.shape[:-1], device=student_logits.device) if mask is None else mask
    terms = {}
    if weights["consistency"]:
        terms["consistency"] = student_logits.new_zeros(())
    if weights["consistency"] and teacher_logits is not None:
        divergence = consistency_loss(
            student_logits[picked],
            teacher_logits,
            temperature=config.temperature,
            direction=config.consistency_direction,
            mask=mask[picked],
        )
        terms["consistency"] = divergence * mask[picked].sum() / (config.sample_rate * mask.sum().clamp(min=1))
    if weights["diversity"]:
        terms["diversity"] = topk_entropy_loss(student_logits, top_k=config.top_k, mask=mask)
    if weights["spectral"]:
        rows = select_rows(student_logits, mask)  # (M, V)
        rows = gather_rows(rows) if config.gather_batch_terms else rows
        terms["spectral"] = spectral_loss(rows, k=config.spectral_k, normalization="frobenius")
    for name, term in token_terms(config, weights).items():
        if term.loss is not None:
            seen = (student_logits[picked], mask[picked]) if term.needs_teacher else (student_logits, mask)
            rows = select_rows(*seen)  # (m, V)
            teacher_rows = None  # (m, V)
            if term.needs_teacher and teacher_logits is not None:
                teacher_rows = select_rows(teacher_logits, mask[picked])
            tokens = mask.sum().clamp(min=1).to(rows.dtype)  # M
            rate = config.sample_rate if term.needs_teacher else 1.0
            terms[name] = _token_losses(term, rows, teacher_rows).sum() / (rate * tokens)
    return terms


def classification_terms(
    student_logits: Tensor, teacher_logits: Tensor | None, config: BALoraConfig, weights: dict[str, float]
) -> dict[str, Tensor]:
    """Return the unweighted terms of class logits `(N, D)`.

    A single output is a regression: softmax, off-diagonal covariance and spectral share of one column are constants,
    so consistency is the squared error to the teacher's score and the others do not exist.
    """
    classes = student_logits.shape[-1]
    terms = {}
    if classes == 1:
        if weights["consistency"]:
            terms["consistency"] = F.mse_loss(student_logits.float(), teacher_logits.float())
        return terms
    if weights["consistency"]:
        terms["consistency"] = consistency_loss(
            student_logits, teacher_logits, temperature=config.temperature, direction=config.consistency_direction
        )
    by_entropy = config.diversity_loss == "entropy"
    batch = student_logits  # (N, D), the matrix that covariance and spectral term are of
    if config.gather_batch_terms and (weights["spectral"] or (weights["diversity"] and not by_entropy)):
        batch = gather_rows(student_logits)
    if weights["diversity"]:
        terms["diversity"] = (
            topk_entropy_loss(student_logits, top_k=config.top_k) if by_entropy else covariance_diversity_loss(batch)
        )
    if weights["spectral"]:
        k = min(config.spectral_k, classes - 1) if config.clip_spectral_k else config.spectral_k
        terms["spectral"] = spectral_loss(batch, k=k, normalization="nuclear")
    for name, term in token_terms(config, weights).items():
        if term.loss is not None:
            teacher_rows = select_rows(teacher_logits, None) if term.needs_teacher else None
            terms[name] = _token_losses(term, select_rows(student_logits, None), teacher_rows).mean()
    return terms


def _token_losses(term: TokenTerm, student_rows: Tensor, teacher_rows: Tensor | None) -> Tensor:
    """Return `(m,)` values of logits `(m, V)`; 0 for all where the teacher saw none."""
    if not len(student_rows):
        return student_rows.sum(-1)
    # As in the fused pass: autocast would round sums over a row to half precision.
    with torch.autocast(student_rows.device.type, enabled=False):
        return term.loss(student_rows, teacher_rows)
