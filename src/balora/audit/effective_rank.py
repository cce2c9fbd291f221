"""The effective rank of a text's logits, without holding them.

Roy and Vetterli (2007), "The effective rank: a measure of effective dimensionality": exp(−Σ p_i log p_i) with
p_i = σ_i / Σ_j σ_j. Logits Z = H·Wᵀ `(M, V)` have the singular values whose squares are the eigenvalues of Z·Zᵀ, a sum
over chunks of the vocabulary, and those of C^½·HᵀH·C^½ with C = WᵀW `(d, d)`, if there are more tokens than d.
"""

from collections.abc import Iterator
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from balora.fused import Head

#: Logits of one chunk of the vocabulary.
CHUNK_ELEMENTS = 2**22


def effective_rank(matrix: Tensor) -> float:
    """Return the effective rank of a matrix `(M, V)` that is not 0, from 1 to its smaller side."""
    wide = matrix.double()
    return _rank_of_gram(wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide)


class LogitRank:
    """The effective rank of the logits that a head gives.

    Args:
        head: From hidden states to logits.
    """

    def __init__(self, head: Head) -> None:
        # A bias is one more column of the weight, times one more entry of 1 in each hidden state.
        self.head = head
        self.vocabulary = len(head.weight)
        self.width = head.weight.shape[1] + (head.bias is not None)

    def __call__(self, hidden: Tensor) -> float:
        """Return the effective rank of the logits of hidden states `(M, d)`."""
        if self.head.softcap is None and len(hidden) > self.width:
            extended = hidden if self.head.bias is None else F.pad(hidden, (0, 1), value=1.0)
            wide = extended.double()
            return _rank_of_gram(self._root @ (wide.T @ wide) @ self._root)  # a scale does not change the rank
        if len(hidden) > self.vocabulary:
            return effective_rank(self.head.logits(hidden.to(self.head.weight.dtype)))
        gram = hidden.new_zeros(len(hidden), len(hidden), dtype=torch.float64)
        for z in self._columns(hidden):
            gram += z @ z.T
        return _rank_of_gram(gram)

    @cached_property
    def _root(self) -> Tensor:
        """C^½ `(d, d)`, float64."""
        gram = torch.zeros(self.width, self.width, dtype=torch.float64, device=self.head.weight.device)
        for first in range(0, self.vocabulary, step := max(1, CHUNK_ELEMENTS // self.width)):
            weight = self.head.weight[first : first + step].double()
            if self.head.bias is not None:
                weight = torch.cat([weight, self.head.bias[first : first + step, None].double()], 1)
            gram += weight.T @ weight
        values, vectors = torch.linalg.eigh(gram)
        return vectors * values.clamp(min=0).sqrt() @ vectors.T

    def _columns(self, hidden: Tensor) -> Iterator[Tensor]:
        """Yield the logits of a chunk of the vocabulary after another, `(M, v)`, float64."""
        head, hidden = self.head, hidden.to(self.head.weight.dtype)
        for first in range(0, self.vocabulary, step := max(1, CHUNK_ELEMENTS // len(hidden))):
            part = slice(first, first + step)
            bias = None if head.bias is None else head.bias[part]
            yield Head(head.weight[part], bias, head.scale, head.softcap).logits(hidden).double()


def _rank_of_gram(gram: Tensor) -> float:
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.distributions.Categorical(probs=singular).entropy().exp().item()
