"""The bias path's loss, against rows one by one, and the direction between counterfactual pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.losses import bias_path_loss, counterfactual_direction
from balora.losses.bias_path import mean_of_tokens


def drawn(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@settings(deadline=None)
@given(n=st.integers(1, 6), d=st.integers(1, 9), weighted=st.booleans(), seed=st.integers(0, 99))
def test_it_is_the_mean_of_squared_norms_and_so_is_its_gradient(n, d, weighted, seed):
    shifted, plain, weights = drawn(seed, (n, d), (n, d), (n,))
    weights = weights.abs() if weighted else None
    for x in (shifted, plain):
        x.requires_grad_()
    counts = [1.0] * n if weights is None else weights.tolist()
    rows = [sum((p - q) ** 2 for p, q in zip(x, y, strict=True)) for x, y in zip(shifted, plain, strict=True)]
    naive = sum(c * row for c, row in zip(counts, rows, strict=True)) / sum(counts)
    loss = bias_path_loss(shifted, plain, weights=weights)
    torch.testing.assert_close(loss, naive, rtol=1e-9, atol=0)
    torch.testing.assert_close(bias_path_loss(shifted, plain, weights=weights, reduction="mean"), naive / d)
    for got, expected in zip(
        torch.autograd.grad(loss, (shifted, plain)), torch.autograd.grad(naive, (shifted, plain)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_rows_that_count_nothing_leave_a_zero():
    shifted, plain = drawn(0, (3, 4), (3, 4))
    shifted.requires_grad_()
    loss = bias_path_loss(shifted, plain, weights=torch.zeros(3))
    loss.backward()
    assert loss == 0
    assert not shifted.grad.any()


def test_half_precision_is_compared_in_single():
    shifted, plain = (x.bfloat16() for x in drawn(1, (4, 512), (4, 512)))
    assert bias_path_loss(shifted, plain).dtype == torch.float32
    torch.testing.assert_close(
        bias_path_loss(shifted, plain), bias_path_loss(shifted.double(), plain.double()).float(), rtol=1e-6, atol=0
    )


@settings(deadline=None)
@given(n=st.integers(1, 4), s=st.integers(1, 6), d=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_text_is_the_mean_of_its_tokens_whatever_its_padding_holds(n, s, d, seed):
    (hidden,) = drawn(seed, (n, s, d))
    mask = torch.rand(n, s, generator=torch.Generator().manual_seed(seed)) < 0.6
    means = mean_of_tokens(hidden.where(mask.unsqueeze(-1), torch.nan), mask.long())
    for row in range(n):
        kept = [hidden[row, t] for t in range(s) if mask[row, t]]
        expected = sum(kept) / len(kept) if kept else torch.zeros(d, dtype=torch.float64)
        torch.testing.assert_close(means[row], expected)
    torch.testing.assert_close(mean_of_tokens(hidden, None), mean_of_tokens(hidden, torch.ones(n, s)))


@settings(deadline=None)
@given(pairs=st.integers(1, 6), d=st.integers(1, 8), seed=st.integers(0, 99))
def test_no_direction_has_larger_differences(pairs, d, seed):
    first, second, others = drawn(seed, (pairs, d), (pairs, d), (200, d))
    direction = counterfactual_direction(first, second)
    torch.testing.assert_close(direction.norm(), torch.ones((), dtype=torch.float64))
    along = ((first - second) @ direction).square().sum()
    assert (((first - second) @ (others / others.norm(dim=1, keepdim=True)).T).square().sum(0) <= along + 1e-9).all()
    torch.testing.assert_close(counterfactual_direction(second, first), -direction)


def test_a_planted_direction_is_found():
    (planted, base, noise) = drawn(5, (16,), (20, 16), (20, 16))
    planted /= planted.norm()
    first = base + torch.linspace(0.5, 2, 20, dtype=torch.float64).unsqueeze(1) * planted + 0.01 * noise
    assert counterfactual_direction(first, base) @ planted > 0.999


def test_what_does_not_fit_is_refused():
    x, y = drawn(2, (3, 4), (3, 5))
    with pytest.raises(ValueError, match=r"expected shifted and plain \(N, d\)"):
        bias_path_loss(x, y)
    with pytest.raises(ValueError, match=r"weights \(N,\), not .*\(2,\)"):
        bias_path_loss(x, x, weights=torch.ones(2))
    with pytest.raises(ValueError, match="reduction"):
        bias_path_loss(x, x, reduction="max")
    with pytest.raises(ValueError, match="P ≥ 1 pairs"):
        counterfactual_direction(x[:0], x[:0])
    with pytest.raises(ValueError, match="equal embeddings"):
        counterfactual_direction(x, x)
