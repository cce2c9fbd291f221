"""Losses on adapters' factors, against pairs one by one, in the weight's own size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.losses import alignment_loss, semantic_loss


def pairs(n: int):
    return [(i, j) for i in range(n) for j in range(i + 1, n)]


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@settings(deadline=None)
@given(
    n=st.integers(1, 5), out=st.integers(1, 9), width=st.integers(1, 9), r=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_alignment_is_the_sum_over_pairs(n, out, width, r, seed):
    a, b = drawn(seed, (n, out, r), (n, r, width))
    naive = sum(((1.5 * (a[i] @ b[i] - a[j] @ b[j])) ** 2).sum() for i, j in pairs(n))
    torch.testing.assert_close(
        alignment_loss(a, b, 1.5), torch.as_tensor(naive, dtype=torch.float64), atol=1e-10, rtol=1e-10
    )


def test_adapters_that_agree_are_aligned_however_they_are_factored():
    a, b, turn = drawn(0, (1, 8, 3), (1, 3, 7), (3, 3))
    turned = torch.cat([a, a @ turn]), torch.cat([b, torch.linalg.inv(turn) @ b])
    assert abs(alignment_loss(*turned)) < 1e-10 * (a @ b).square().sum()


def test_in_half_precision_inner_products_are_summed_in_single():
    a, b = (x.bfloat16() for x in drawn(1, (3, 64, 4), (3, 4, 64)))
    assert alignment_loss(a, b).dtype == torch.float32
    torch.testing.assert_close(alignment_loss(a, b), alignment_loss(a.double(), b.double()).float(), rtol=1e-5, atol=0)


def naive_semantic(a, b, m, s, keep=lambda similarity: True) -> tuple[torch.Tensor, int]:
    total, counted = torch.zeros((), dtype=torch.float64), 0
    for i, j in pairs(len(m)):
        similarity = F.cosine_similarity(s[i], s[j], dim=0)
        if keep(similarity):
            total = total + similarity * (a @ (m[i] - m[j]) @ b).square().sum()
            counted += 1
    return total, counted


@settings(deadline=None)
@given(
    n=st.integers(1, 6), out=st.integers(1, 9), width=st.integers(1, 9), r=st.integers(1, 4), seed=st.integers(0, 99)
)
def test_semantic_guidance_is_the_sum_over_pairs(n, out, width, r, seed):
    a, b, m, s = drawn(seed, (out, r), (r, width), (n, r, r), (n, 5))
    total, _ = naive_semantic(a, b, m, s)
    torch.testing.assert_close(semantic_loss(a, b, m, s), total, atol=1e-10, rtol=1e-10)
    alike, counted = naive_semantic(a, b, m, s, lambda similarity: similarity >= 0.1)
    mean = semantic_loss(a, b, m, s, min_similarity=0.1, reduction="mean")
    torch.testing.assert_close(mean, alike / max(counted, 1), atol=1e-10, rtol=1e-10)


def test_rounding_is_that_of_the_gates_spread():
    """Gates near one another, as they are at the start, far from zero."""
    a, b, m, s = drawn(2, (64, 4), (4, 64), (6, 4, 4), (6, 9))
    m = 1000 * torch.eye(4, dtype=torch.float64) + 0.01 * m
    a, b, m, s = (x.float() for x in (a, b, m, s))
    exact, _ = naive_semantic(*(x.double() for x in (a, b, m, s)))
    torch.testing.assert_close(semantic_loss(a, b, m, s), exact.float(), rtol=1e-3, atol=0)


def test_no_gradient_reaches_the_sentence_encoder():
    a, b, m, s = drawn(3, (5, 2), (2, 5), (3, 2, 2), (3, 4))
    s.requires_grad_()
    m.requires_grad_()
    semantic_loss(a, b, m, s).backward()
    assert s.grad is None
    assert m.grad.abs().max() > 0


def test_shapes_that_do_not_fit_are_refused():
    a, b, m, s = drawn(4, (5, 2), (2, 5), (3, 2, 2), (3, 4))
    with pytest.raises(ValueError, match=r"expected a \(out, r\)"):
        semantic_loss(a, b, m, s[:2])
    with pytest.raises(ValueError, match="reduction"):
        semantic_loss(a, b, m, s, reduction="max")
    with pytest.raises(ValueError, match=r"expected a \(n, out, r\)"):
        alignment_loss(a, b)
