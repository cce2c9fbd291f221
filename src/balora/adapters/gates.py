"""f of SeLoRA: from a row's sentence vector to the r × r matrix that stands between the factors of each adapted layer.

All layers' gates are one module of the model and not parts of the layers, so that they are computed once per forward,
or once for a whole generation, and where a sharded model's own weights are whole.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SentenceGate(nn.Module):
    """M(s) = I + H·gelu(T·ŝ + t) + h, for every adapted layer; H and h start at zero, so every M starts at I.

    ŝ = √d·s/‖s‖: as in the semantic loss's cosine, a sentence vector's length says nothing.

    With L layers of ranks r, vectors of length d and a hidden width w there are Σ_layers r²·(w + 1) parameters in the
    heads H, and (d + 1)·w in a shared trunk T, or L·(d + 1)·w where each layer has its own. For T5-base (144 attention
    projections, r = 8, w = 64) and d = 384 that is 0.62 M and 4.15 M, beside 1.77 M of A and B.

    Args:
        ranks: r of each layer, in the model's order.
        sentence_dim: d.
        hidden: w.
        shared: Whether all layers have one trunk.
    """

    def __init__(self, ranks: Sequence[int], *, sentence_dim: int, hidden: int, shared: bool) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        self.trunks = nn.ModuleList(nn.Linear(sentence_dim, hidden) for _ in range(1 if shared else len(ranks)))
        self.heads = nn.ModuleList(nn.Linear(hidden, r * r) for r in ranks)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, s: Tensor) -> list[Tensor]:
        """Sentence vectors `(B, d)` to `(B, r, r)` for each layer, in the parameters' precision."""
        weight = self.trunks[0].weight
        with torch.autocast(weight.device.type, enabled=False):  # beside I, small changes would be rounded away
            s = s.to(weight)
            direction = s.shape[1] ** 0.5 * F.normalize(s, dim=1)
            hidden = [F.gelu(trunk(direction)) for trunk in self.trunks]  # (B, w) each
            hidden = hidden * (len(self.heads) // len(hidden))
            changes = [head(h).view(-1, r, r) for head, h, r in zip(self.heads, hidden, self.ranks, strict=True)]
            return [torch.eye(r).to(weight) + change for r, change in zip(self.ranks, changes, strict=True)]
