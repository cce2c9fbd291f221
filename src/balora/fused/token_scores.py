"""Scores of tokens from hidden states, without gradient and without all logits: what every measurement reads.

Each chunk of tokens goes through the head once, student and teacher side by side, and gives at once the label's
log-probability, the most likely token, the entropy and the divergence from the teacher. In blocks that stay in a
processor's cache, with p = softmax(z), m = max z and s = z − m:

    log Σ eˢ            −log p_max
    log-probability     s_y − log Σ eˢ
    entropy             log Σ eˢ − Σ p·s
    divergence          Σ p_P·(s_P − s) + log Σ eˢ − log Σ e^{s_P}, that is KL(teacher ‖ student)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat

import torch
from torch import Tensor

from balora.fused.chunks import CHUNK_ELEMENTS, FEWEST_ROWS, project, scaled
from balora.fused.head import Head

IGNORED = -100
#: Logits of one block, by kind of device: three buffers of this size fit a CPU's cache, or little of a GPU's memory.
BLOCK_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
#: Columns that are represented by their maximum in the search for the largest.
COLUMNS = 64


@dataclass(frozen=True)
class TokenScores:
    """Scores of M tokens, `(M,)` each: float64 in nats, and ids.

    Attributes:
        log_p: Log-probability of the label; 0 without a label.
        top1: The most likely token, the first of equals.
        entropy: Entropy of the prediction; `None` if it was not asked for.
        teacher: The teacher's own scores; `None` without a teacher.
        divergence: KL(teacher ‖ student) at temperature 1; `None` without a teacher.
    """

    log_p: Tensor
    top1: Tensor
    entropy: Tensor | None = None
    teacher: "TokenScores | None" = None
    divergence: Tensor | None = None


@torch.no_grad()
def token_scores(
    hidden: Tensor,
    head: Head | None,
    labels: Tensor,
    teacher_hidden: Tensor | None = None,
    teacher_head: Head | None = None,
    *,
    entropy: bool = False,
) -> TokenScores:
    """Score M tokens, a chunk of them at a time.

    Args:
        hidden: `(M, d)`, the student's, in the precision that its head multiplies in; logits `(M, V)` if `head` is
            `None`.
        head: The student's.
        labels: `(M,)`, the token to predict, −100 for none.
        teacher_hidden: `(M, d')`, the teacher's; `None` without a teacher.
        teacher_head: The teacher's.
        entropy: Whether to compute entropies too.
    """
    if head is not None and teacher_head is not None and teacher_head.weight is head.weight:
        head = replace(head, weight=head.weight.to(hidden.dtype))  # one copy for both, and none in the same precision
        teacher_head = replace(teacher_head, weight=head.weight)
    rows = chunk_rows(hidden, head)
    student = logit_chunks(hidden, head, rows)
    taught = repeat(None) if teacher_hidden is None else logit_chunks(teacher_hidden, teacher_head, rows)
    parts = [
        _score_blocks(z, z_teacher, own, entropy)
        for own, z, z_teacher in zip(labels.split(rows), student, taught, strict=False)  # without a teacher, endless
    ]
    return joined_scores(parts)


def chunk_rows(hidden: Tensor, head: Head | None) -> int:
    """Return the number of tokens whose logits make up one chunk."""
    vocabulary = hidden.shape[-1] if head is None else len(head.weight)
    return max(CHUNK_ELEMENTS.get(hidden.device.type, 2**26) // vocabulary, FEWEST_ROWS)


@torch.no_grad()
def logit_chunks(hidden: Tensor, head: Head | None, rows: int) -> Iterator[Tensor]:
    """Yield the logits `(m, V)` of `rows` tokens after `rows`, each chunk in the memory of the last.

    Args:
        hidden: `(M, d)`, in the precision to multiply in; or logits `(M, V)` where `head` is `None`.
        head: From hidden states to logits.
        rows: Tokens of a chunk; at least one chunk is yielded.
    """
    if head is None:
        yield from (chunk.clone() for chunk in hidden.split(rows))
        return
    hidden, weight, bias = scaled(hidden, head)
    weight = weight.to(hidden.dtype)  # a copy under autocast only
    buffer = hidden.new_empty(min(rows, len(hidden)), len(weight))
    for chunk in hidden.split(rows):
        z = project(chunk, weight, bias, buffer)  # (m, V)
        if head.softcap is not None:
            z.mul_(1 / head.softcap).tanh_().mul_(head.softcap)
        yield z


def _score_blocks(logits: Tensor, teacher_logits: Tensor | None, labels: Tensor, entropy: bool) -> TokenScores:
    """Score the tokens of a chunk, `(m, V)`; its logits are overwritten."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = max(1, BLOCK_ELEMENTS.get(logits.device.type, 2**24) // logits.shape[1])
    scratch = torch.empty(min(rows, len(logits)), logits.shape[1], dtype=wide, device=logits.device)
    taught = repeat(None) if teacher_logits is None else teacher_logits.split(rows)
    parts = []
    for z, z_teacher, own in zip(logits.split(rows), taught, labels.split(rows), strict=False):
        shifted = z.to(wide)  # the logits themselves if they are wide already
        p = scratch[: len(z)]
        scores, log_total = _score(shifted, own, p, entropy)
        if z_teacher is not None:
            taught_shifted = z_teacher.to(wide)
            teacher, taught_log_total = _score(taught_shifted, own, p, entropy)
            gap = torch.linalg.vecdot(p, taught_shifted.sub_(shifted)).double()
            scores = replace(scores, teacher=teacher, divergence=gap + log_total - taught_log_total)
        parts.append(scores)
    return joined_scores(parts)


def _score(z: Tensor, labels: Tensor, p: Tensor, entropy: bool) -> tuple[TokenScores, Tensor]:
    """Overwrite a block of logits `(b, V)` by s and `p` by its softmax; return the scores and log Σ eˢ, `(b,)`."""
    peak, top1 = _largest(z)
    torch.softmax(z, -1, out=p)
    log_total = -p.gather(-1, top1.unsqueeze(-1))[:, 0].double().log()
    z.sub_(peak.unsqueeze(-1))
    label = z.gather(-1, labels.clamp(min=0).unsqueeze(-1))[:, 0].double()
    log_p = (label - log_total).where(labels != IGNORED, 0)
    uncertainty = log_total - torch.linalg.vecdot(p, z).double() if entropy else None
    return TokenScores(log_p, top1, uncertainty), log_total


def _largest(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of each row and its column, the first of equals, `(b,)` each.

    It lies in the first group of columns whose maximum is the row's, so that only one group is searched: PyTorch's
    search with an index is many times slower than its maximum.
    """
    even = z.shape[-1] - z.shape[-1] % COLUMNS
    if not even:
        return z.max(-1)
    groups = z[:, :even].unflatten(-1, (-1, COLUMNS))  # (b, G, COLUMNS)
    best = groups.amax(-1).argmax(-1)  # (b,)
    inside = groups.gather(1, best.view(-1, 1, 1).expand(-1, 1, COLUMNS))[:, 0]  # (b, COLUMNS)
    value, column = inside.max(-1)
    column += best * COLUMNS
    if even == z.shape[-1]:
        return value, column
    beyond, place = z[:, even:].max(-1)
    return torch.maximum(value, beyond), torch.where(beyond > value, even + place, column)


def joined_scores(parts: Sequence[TokenScores]) -> TokenScores:
    """Return the scores of several runs of tokens, at least one, as those of one."""

    def joined(name: str) -> Tensor | TokenScores | None:
        values = [getattr(part, name) for part in parts]
        if values[0] is None:
            return None
        return joined_scores(values) if name == "teacher" else torch.cat(values)

    return TokenScores(**{field.name: joined(field.name) for field in fields(TokenScores)})
