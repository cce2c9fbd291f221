"""Drift: the distance of the adapted model's outputs from the pretrained model's on the same inputs."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from balora.adapters.teacher import is_untouched
from balora.fused import Reader, TokenScorer, teacher_reader
from balora.losses.masking import select_rows
from balora.utils.batches import inputs_and_mask
from balora.utils.modules import evaluation_mode
from balora.utils.progress import tracked

IGNORED = -100


def measure_drift(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[dict[str, Tensor]],
    teacher: Callable[..., Any] | None = None,
) -> dict[str, float]:
    """Compare student and teacher, token by token (example by example in classification).

    Args:
        model: The adapted model; its training mode is restored.
        batches: Model inputs as tensors. `attention_mask` excludes padding; in sequence-to-sequence models the labels
            give the decoder's input and which of its tokens count. Otherwise labels are ignored.
        teacher: The pretrained model, or its forward; `None` for the `BALoraModel`'s own teacher. A forward that is
            no method of a model is read up to its logits, which takes more memory.

    Returns:
        `kl_to_base`: mean KL(teacher ‖ student) in nats, temperature 1; `top1_agreement`: share of tokens with the
        same most likely continuation. With one output (regression) only `mse_to_base`, the mean squared difference.
        Empty without batches.
    """
    if _writes_text(model):
        return measure_loss_and_drift(model, batches, teacher)[1]
    return _drift_of_classes(model, batches, teacher or model.teacher_forward)


@torch.no_grad()
def measure_loss_and_drift(
    model: PreTrainedModel | PeftModel,
    batches: Iterable[dict[str, Tensor]],
    teacher: Callable[..., Any] | None = None,
) -> tuple[float, dict[str, float]]:
    """Return a language model's held-out loss and its drift, from one pass of the student and one of the teacher.

    The loss is the mean negative log-likelihood in nats over all labelled tokens; NaN without any. An adapter that
    changes nothing yet has a drift of 0 without a pass of the teacher.

    Args:
        model: As for `measure_drift`.
        batches: As for `measure_drift`; without labels there is no loss.
        teacher: As for `measure_drift`.
    """
    taught: Reader | None = teacher_reader(model, teacher)
    if taught.pretrained and is_untouched(model):
        taught = None
    score, shift = TokenScorer(model, taught), 0 if model.config.is_encoder_decoder else 1
    sums, labelled, compared = torch.zeros(3, dtype=torch.float64), 0, 0
    for batch in tracked(batches, "comparing with the base"):
        inputs, mask = inputs_and_mask(model, batch)
        if mask is None:  # a causal model's inputs without padding
            mask = torch.ones(inputs.get("input_ids", inputs.get("inputs_embeds")).shape[:2], device=model.device)
        mask = mask.bool()  # (B, S)
        labels = batch["labels"].to(model.device) if "labels" in batch else torch.full_like(mask, IGNORED, dtype=int)
        targets = F.pad(labels[:, shift:], (0, shift), value=IGNORED)
        counted = mask | (targets != IGNORED)
        scores = score(inputs, targets, counted)
        labelled += int((targets != IGNORED).sum())
        compared += int(mask.sum())
        kept = mask[counted]
        sums[0] -= scores.log_p.sum().item()
        if taught is not None:
            sums[1] += scores.divergence[kept].sum().item()
            sums[2] += (scores.top1 == scores.teacher.top1)[kept].sum().item()
        else:
            sums[2] += int(kept.sum())
    loss, divergence, agreeing = sums.tolist()
    drift = {"kl_to_base": max(divergence, 0.0) / compared, "top1_agreement": agreeing / compared} if compared else {}
    return loss / labelled if labelled else float("nan"), drift


def _writes_text(model: PreTrainedModel | PeftModel) -> bool:
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.get_output_embeddings() is not None


@torch.no_grad()
def _drift_of_classes(
    model: PreTrainedModel | PeftModel, batches: Iterable[dict[str, Tensor]], teacher: Callable[..., Any]
) -> dict[str, float]:
    count, totals = 0, {}
    for batch in tracked(batches, "comparing with the base"):
        inputs, _ = inputs_and_mask(model, batch)
        with evaluation_mode(model):
            student, taught = model(**inputs).logits, teacher(**inputs).logits
        student, taught = select_rows(student, None), select_rows(taught, None)  # (N, C)
        for name, value in drift_of(student, taught).items():
            totals[name] = totals.get(name, 0.0) + value * len(student)
        count += len(student)
    return {name: total / count for name, total in totals.items()}


def drift_of(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Compute the measures of `measure_drift` from logits `(M, V)`, M ≥ 1."""
    if student.shape[-1] == 1:
        return {"mse_to_base": (student - teacher).square().mean().item()}
    log_p, log_q = F.log_softmax(teacher, -1), F.log_softmax(student, -1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    agreement = (student.argmax(-1) == teacher.argmax(-1)).float().mean().item()
    return {"kl_to_base": max(divergence, 0.0), "top1_agreement": agreement}
