"""Closed-form gradients of a block of logits, in place: task loss, consistency (KL) and top-K entropy of each row.

With u = z/T, F = softmax(u), P the teacher's, p = softmax(z), and p' the softmax over a row's top K:

    task                −log p_y                    gradient  p − 1_y
      DFT               −sg(p_y)·log p_y                      p_y·(p − 1_y)
    consistency         T²·Σ P·(log P − log F)                T·(F − P)
      reversed          T²·Σ F·(log F − log P)                T·F·(log F − log P − its own sum)
    entropy             Σ p'·log p'                           p'·(log p' − its own sum), on the K indices
    softcap             z = c·tanh(x/c)                       times 1 − (z/c)²

Each row's gradient is a weighted sum of these. Rows are processed in blocks that stay in a processor's cache, so that
a pass over the vocabulary reads from cache and not from memory; T = 1 and T = 2 compute p from F without a second
exponential.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Logits of one block: three scratch buffers of this size and the logits themselves fit a CPU's cache.
BLOCK_ELEMENTS = 2**20
#: Columns that are represented by their maximum in the search for the K largest.
COLUMNS = 64


@dataclass(frozen=True)
class RowObjective:
    """The terms to compute for each row.

    Attributes:
        temperature: T of the consistency term.
        reverse: Whether to compute KL(student ‖ teacher) instead of KL(teacher ‖ student).
        top_k: K of the entropy term; 0 omits the term.
        softcap: c of z = c·tanh(x/c), for logits that come in as x; `None` for none.
        divergence: Whether rows with a teacher have the consistency term.
        dft: Whether each label's cross-entropy is weighted by its probability (`balora.losses.dft_loss`).
    """

    temperature: float = 1.0
    reverse: bool = False
    top_k: int = 0
    softcap: float | None = None
    divergence: bool = True
    dft: bool = False


@dataclass
class RowWeights:
    """Labels of the rows and the weights of their terms in the loss, all `(M,)`.

    Attributes:
        labels: Token to predict, −100 for none.
        task: Weight of the cross-entropy; 0 without a label.
        consistency: Weight of T² times the divergence.
        entropy: Weight of the negative entropy among the top K.
    """

    labels: Tensor
    task: Tensor
    consistency: Tensor
    entropy: Tensor

    def __getitem__(self, rows: slice) -> "RowWeights":
        return RowWeights(self.labels[rows], self.task[rows], self.consistency[rows], self.entropy[rows])


def differentiate_rows(
    logits: Tensor, teacher_logits: Tensor | None, weights: RowWeights, objective: RowObjective
) -> Tensor:
    """Compute the values of each row's terms, and overwrite the logits by the gradient of their weighted sum.

    Args:
        logits: `(M, V)`, before any softcap; overwritten.
        teacher_logits: `(M, V)` alike or wider, left as they are; `None` for rows without a teacher.
        weights: Labels and weights of these rows.
        objective: The terms to compute.

    Returns:
        `(3, M)`, unweighted: −log p_y, or DFT's p_y times that (0 without a label), T² times the divergence (0 without
        a teacher), entropy.
        In float32 or wider, whatever the logits' precision.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    values = torch.zeros(3, len(logits), dtype=wide, device=logits.device)
    size = max(1, BLOCK_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    scratch = torch.empty(3, min(size, len(logits)), logits.shape[1], dtype=wide, device=logits.device)
    for start in range(0, len(logits), size):
        rows = slice(start, start + size)
        z = logits[rows].to(wide)  # (b, V), the logits themselves if they are wide already
        taught = None if teacher_logits is None else teacher_logits[rows].to(wide)
        values[:, rows] = _block(z, taught, weights[rows], objective, scratch[:, : len(z)])
        if z.dtype != logits.dtype:
            logits[rows] = z
    return values


def _block(z: Tensor, taught: Tensor | None, weights: RowWeights, objective: RowObjective, scratch: Tensor) -> Tensor:
    """Do the work of `differentiate_rows` on rows that fit the scratch buffers `(3, b, V)`."""
    slope = _cap(z, objective.softcap)
    temperature = objective.temperature if taught is not None else 1.0
    top, where = largest(z, max(objective.top_k, 1))  # (b, K), largest first
    scaled, student, teacher = scratch
    log_peak = _softmax(z, temperature, scaled, student)  # log max F; F in `student`
    if temperature == 2:
        squares = torch.linalg.vector_norm(student, dim=-1).square()  # Σ F² = Σ eᶻ / (Σ eᵘ)²
        log_normalizer = top[:, 0] - 2 * log_peak + squares.log()
    elif temperature == 1:
        log_normalizer = top[:, 0] - log_peak
    else:
        log_normalizer = z.logsumexp(-1)

    values = z.new_zeros(3, len(z))
    labels = weights.labels.clamp(min=0).unsqueeze(-1)  # (b, 1)
    values[0] = (log_normalizer - z.gather(-1, labels)[:, 0]).where(weights.labels != -100, 0)
    task = weights.task
    if objective.dft:
        p = values[0].neg().exp()  # (b,), of the label; without gradient, so that it scales the row's
        values[0] *= p
        task = task * p
    if taught is not None:
        if objective.softcap is not None:
            taught = taught.clone()
            _cap(taught, objective.softcap)
        offset = (top[:, 0] - taught.amax(-1)) / temperature - log_peak
        offset += _softmax(taught, temperature, scaled, teacher)
        gap = torch.sub(taught, z, out=scaled).mul_(1 / temperature)  # log P − log F, but for the offset
        mean_gap = torch.linalg.vecdot(student if objective.reverse else teacher, gap) + offset
        values[1] = temperature**2 * (-mean_gap if objective.reverse else mean_gap)

    # From here on z is its gradient: first task·p, then what the other terms add.
    share, pull = task.unsqueeze(-1), temperature * weights.consistency.unsqueeze(-1)  # (b, 1)
    if temperature == 2:
        torch.square(student, out=z).mul_(share / squares.unsqueeze(-1))
    elif temperature == 1:
        torch.mul(student, share, out=z)
    else:
        z.sub_(log_normalizer.unsqueeze(-1)).exp_().mul_(share)
    z.scatter_add_(-1, labels, -share)
    if taught is not None and objective.reverse:
        bracket = torch.sub((mean_gap - offset).unsqueeze(-1), gap, out=gap)  # log F − log P − its mean under F
        z.addcmul_(student.mul_(bracket), pull)
    elif taught is not None:
        z.addcmul_(student, pull).addcmul_(teacher, -pull)
    if objective.top_k:
        log_p = top.log_softmax(-1)  # (b, K)
        values[2] = (log_p.exp() * log_p).sum(-1)
        spread = log_p.exp() * (log_p - values[2].unsqueeze(-1))
        z.scatter_add_(-1, where, weights.entropy.unsqueeze(-1) * spread)
    if slope is not None:
        z.mul_(slope)
    return values


def _cap(x: Tensor, softcap: float | None) -> Tensor | None:
    """Overwrite x by c·tanh(x/c) and return the derivative."""
    if softcap is None:
        return None
    tanh = x.mul_(1 / softcap).tanh_()
    slope = 1 - tanh.square()
    tanh.mul_(softcap)
    return slope


def _softmax(z: Tensor, temperature: float, scaled: Tensor, out: Tensor) -> Tensor:
    """Write softmax(z/T) into `out` and return the logarithm of each row's largest probability, `(b,)`.

    The latter is e^max / Σ e^u, so it gives the normalizer without another pass of exponentials.
    """
    torch.softmax(z if temperature == 1 else torch.mul(z, 1 / temperature, out=scaled), -1, out=out)
    return out.amax(-1).log()


def largest(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row and their columns, `(b, min(k, V))`, largest first; reads z once.

    They lie in the k groups of columns with the largest maxima, so only those groups are searched.
    """
    columns = z.shape[-1]
    groups = columns // COLUMNS
    if groups <= 4 * k:
        return z.topk(min(k, columns), dim=-1)
    even = groups * COLUMNS
    best = z[:, :even].unflatten(-1, (groups, COLUMNS)).amax(-1).topk(k, dim=-1).indices  # (b, k)
    inside = torch.arange(COLUMNS, device=z.device)
    where = (best.unsqueeze(-1) * COLUMNS + inside).flatten(1)  # (b, k·COLUMNS)
    rest = torch.arange(even, columns, device=z.device).expand(len(z), -1)
    where = torch.cat([where, rest], -1)
    values, order = z.gather(-1, where).topk(k, dim=-1)
    return values, where.gather(-1, order)
