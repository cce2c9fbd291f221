"""The losses against naive loops on random shapes, and where they could break: precision, emptiness, repetition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.losses import consistency_loss, covariance_diversity_loss, spectral_loss, topk_entropy_loss

shapes = st.tuples(st.integers(1, 7), st.integers(2, 9), st.integers(0, 10_000))


def logits_of(rows: int, width: int, seed: int) -> torch.Tensor:
    return 3 * torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(shapes, st.sampled_from([0.5, 1.0, 4.0]))
def test_consistency_is_the_sum_it_says(shape, temperature):
    rows, width, seed = shape
    student, teacher = logits_of(rows, width, seed), logits_of(rows, width, seed + 1)
    expected = {"forward": 0.0, "reverse": 0.0}
    for z_f, z_p in zip(student, teacher, strict=True):
        f = [math.exp(z / temperature) for z in z_f]
        p = [math.exp(z / temperature) for z in z_p]
        f, p = [x / sum(f) for x in f], [x / sum(p) for x in p]
        expected["forward"] += sum(a * math.log(a / b) for a, b in zip(p, f, strict=True)) / rows
        expected["reverse"] += sum(b * math.log(b / a) for a, b in zip(p, f, strict=True)) / rows
    for direction, value in expected.items():
        loss = consistency_loss(student, teacher, temperature=temperature, direction=direction)
        assert loss.item() == pytest.approx(temperature**2 * value, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 12))
def test_topk_entropy_is_the_sum_it_says(shape, top_k):
    logits = logits_of(*shape)
    expected = 0.0
    for row in logits.tolist():
        weights = [math.exp(z) for z in sorted(row, reverse=True)[:top_k]]
        expected += sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights) / len(logits)
    assert topk_entropy_loss(logits, top_k=top_k).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(shapes)
def test_covariance_is_numpy_s(shape):
    logits = logits_of(*shape)
    n, d = logits.shape
    covariance = torch.cov(logits.T) if n > 1 else torch.zeros(d, d, dtype=logits.dtype)
    expected = sum(covariance[i, j] ** 2 for i in range(d) for j in range(d) if i != j) / d
    assert covariance_diversity_loss(logits).item() == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(1, 12), st.sampled_from(["nuclear", "frobenius"]))
def test_spectral_meets_the_svd_in_value_and_gradient(shape, k, normalization):
    logits = logits_of(*shape).requires_grad_()
    s = torch.linalg.svdvals(logits)
    expected = -s[:k].sum() / (s.sum() if normalization == "nuclear" else s.norm())
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = spectral_loss(logits, k=k, normalization=normalization)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-9)


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_masked_rows_reach_neither_loss_nor_gradient(seed):
    kept = logits_of(3, 6, seed)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    poisoned = torch.full((2, 3, 6), float("inf"), dtype=torch.float64)
    poisoned[mask] = kept
    poisoned.requires_grad_()
    for loss, same in [
        (
            consistency_loss(poisoned, poisoned.detach().flip(-1), mask=mask),
            consistency_loss(kept, kept.flip(-1)),
        ),
        (topk_entropy_loss(poisoned, top_k=3, mask=mask), topk_entropy_loss(kept, top_k=3)),
        (
            spectral_loss(poisoned, k=2, normalization="frobenius", mask=mask),
            spectral_loss(kept, k=2, normalization="frobenius"),
        ),
    ]:
        torch.testing.assert_close(loss, same, rtol=1e-12, atol=1e-14)
        (gradient,) = torch.autograd.grad(loss, poisoned)
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()


def every_loss(logits: torch.Tensor, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    teacher = logits.detach().roll(1, -1)
    return {
        "forward": consistency_loss(logits, teacher, temperature=2.0, mask=mask),
        "reverse": consistency_loss(logits, teacher, temperature=2.0, direction="reverse", mask=mask),
        "entropy": topk_entropy_loss(logits, top_k=50, mask=mask),
        "covariance": covariance_diversity_loss(logits if mask is None else logits[mask]),
        "nuclear": spectral_loss(logits, k=50, normalization="nuclear", mask=mask),
        "frobenius": spectral_loss(logits, k=50, normalization="frobenius", mask=mask),
    }


REPEATED = torch.eye(6).repeat(2, 1)[:, torch.arange(6)]
HARD = {
    "large": 1e4 * torch.randn(8, 6, generator=torch.Generator().manual_seed(0)),
    "equal": torch.full((8, 6), 7.0),
    "zero": torch.zeros(8, 6),
    "repeated singular values": REPEATED,
    "rank one": torch.outer(torch.arange(1.0, 9.0), torch.arange(1.0, 7.0)),
    "one row": torch.randn(1, 6, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_losses_stay_finite_where_it_is_hard(case, dtype):
    logits = HARD[case].to(dtype).requires_grad_()
    for name, loss in every_loss(logits, None).items():
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite(), name
        assert loss.dim() == 0, name
        assert loss.dtype == torch.float32, name
        assert gradient.isfinite().all(), name


@pytest.mark.parametrize("valid", [0, 1])
def test_no_valid_row_gives_zero_and_one_row_is_enough(valid):
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).requires_grad_()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    mask[0, :valid] = True
    for name, loss in every_loss(logits, mask).items():
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.isfinite().all(), name
        assert loss.isfinite(), name
        if not valid:
            assert loss == 0, name
            assert (gradient == 0).all(), name


def test_a_logit_that_is_not_finite_shows_in_every_loss():
    logits = torch.ones(4, 6)
    logits[1, 2] = float("nan")
    for name, loss in every_loss(logits, None).items():
        assert not loss.isfinite(), name


def test_spectral_ignores_scale():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    for normalization in ("nuclear", "frobenius"):
        loss = spectral_loss(logits, k=2, normalization=normalization)
        huge = spectral_loss(1e30 * logits, k=2, normalization=normalization)
        torch.testing.assert_close(loss, huge, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda z: consistency_loss(z, z[:1]),
        lambda z: consistency_loss(z, z, temperature=0.0),
        lambda z: consistency_loss(z, z, direction="backward"),
        lambda z: topk_entropy_loss(z, top_k=0),
        lambda z: spectral_loss(z, k=0, normalization="nuclear"),
        lambda z: spectral_loss(z, k=1, normalization="spectral"),
        lambda z: topk_entropy_loss(z, top_k=1, mask=torch.ones(3)),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(ValueError, match=r"must be|differ|need"):
        call(torch.ones(2, 3))
