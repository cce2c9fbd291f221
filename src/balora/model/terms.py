"""The regularizers of one batch, chosen by task: from logits to named terms.

This is the plain path: it takes whole logits and is what faster paths are tested against. A term whose weight is 0 is
not computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.config import BALoraConfig
from balora.losses import consistency_loss, covariance_diversity_loss, spectral_loss, topk_entropy_loss
from balora.losses.masking import select_rows
from balora.utils.distributed import gather_rows


def generation_terms(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    mask: Tensor | None,
    picked: Tensor,
    config: BALoraConfig,
    weights: dict[str, float],
) -> dict[str, Tensor]:
    """Unweighted regularizers on next-token logits; `mask` `(B, S)` marks the tokens that are not padding.

    Consistency and diversity are means over tokens; the spectral term is of the micro-batch's own M × V matrix, or,
    with `gather_batch_terms`, of that of all processes.

    Args:
        student_logits: `(B, S, V)`.
        teacher_logits: `(n, S, V)`, of the n sequences that the teacher saw; `None` where it saw none.
        mask: `(B, S)`; `None` for all tokens.
        picked: `(B,)`, true for those n sequences. Each was one of them with a chance of `config.sample_rate`, so
            dividing by it leaves the mean over all tokens as it is on average.
        config: Temperature, direction, top_k, spectral_k, sample_rate, gather_batch_terms.
        weights: λ of each term; one at 0 is not computed.
    """
    mask = torch.ones(student_logits.shape[:-1], device=student_logits.device) if mask is None else mask
    terms = {}
    if weights["consistency"]:
        terms["consistency"] = student_logits.new_zeros(())
    if teacher_logits is not None:
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
    return terms


def classification_terms(
    student_logits: Tensor, teacher_logits: Tensor | None, config: BALoraConfig, weights: dict[str, float]
) -> dict[str, Tensor]:
    """Unweighted regularizers on class logits `(N, D)`.

    A single output is a regression: softmax, off-diagonal covariance and spectral share of one column are constants,
    so consistency is the squared error to the teacher's score and the other two do not exist.
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
    batch = student_logits  # (N, D), whose matrix is looked at
    if config.gather_batch_terms and (weights["spectral"] or (weights["diversity"] and not by_entropy)):
        batch = gather_rows(student_logits)
    if weights["diversity"]:
        terms["diversity"] = (
            topk_entropy_loss(student_logits, top_k=config.top_k) if by_entropy else covariance_diversity_loss(batch)
        )
    if weights["spectral"]:
        k = min(config.spectral_k, classes - 1) if config.clip_spectral_k else config.spectral_k
        terms["spectral"] = spectral_loss(batch, k=k, normalization="nuclear")
    return terms
