"""The spectral term from hidden states and head, exact and randomized, against the one from logits."""

import pytest
import torch

import balora.fused.spectrum
from balora.fused import Head, HeadSpectrum
from balora.losses import spectral_loss


def problem(rows: int, d: int = 24, vocabulary: int = 70, decay: float = 0.8, seed: int = 0) -> tuple:
    """Hidden states with a decaying spectrum, as language models' are, and a head."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, d, generator=generator) * decay ** torch.arange(d)
    return hidden.requires_grad_(), torch.randn(vocabulary, d, generator=generator)


def both(hidden, head, k):
    fused = HeadSpectrum().loss(hidden, head, k=k)
    plain = spectral_loss(head.logits(hidden), k=k, normalization="frobenius")
    return [(loss, *torch.autograd.grad(loss, hidden, retain_graph=True)) for loss in (fused, plain)]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("rows", [300, 1000])
def test_the_randomized_term_is_near_the_exact_one(rows, softcap):
    hidden, weight = problem(rows)
    (fused, gradient), (plain, expected) = both(hidden, Head(weight, softcap=softcap), 6)
    torch.testing.assert_close(fused, plain, rtol=1e-3, atol=0)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), expected.flatten(), 0) > 0.99


def test_the_same_hidden_states_give_the_same_bits():
    hidden, weight = problem(400)
    torch.manual_seed(1)
    first = HeadSpectrum(seed=5).loss(hidden, Head(weight), k=4)
    torch.manual_seed(2)
    assert torch.equal(HeadSpectrum(seed=5).loss(hidden, Head(weight), k=4), first)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_k_and_rows_beyond_what_exists(rows, k):
    hidden, weight = problem(rows)
    (fused, gradient), (plain, expected) = both(hidden, Head(weight), k)
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    assert gradient.isfinite().all()
    if k <= rows:  # beyond, some singular vectors are arbitrary
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_no_rows_and_zero_rows_are_finite(softcap):
    for rows in (0, 4):
        hidden = torch.zeros(rows, 8, requires_grad=True)
        loss = HeadSpectrum().loss(hidden, Head(torch.randn(20, 8), softcap=softcap), k=3)
        loss.backward()
        assert loss == 0
        assert hidden.grad.isfinite().all()


def test_repeated_singular_values_are_differentiable():
    hidden = torch.eye(6, 8).requires_grad_()
    HeadSpectrum().loss(hidden, Head(torch.eye(20, 8)), k=3).backward()
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_logit_that_is_not_finite_shows_in_the_loss(softcap):
    hidden = torch.randn(5, 8)
    hidden[2, 1] = float("nan")
    assert HeadSpectrum().loss(hidden, Head(torch.randn(20, 8), softcap=softcap), k=3).isnan()


def test_a_frozen_head_is_read_once_and_a_trained_one_each_time(monkeypatch):
    hidden, weight = problem(10)
    spectrum, reads = HeadSpectrum(), []
    real = balora.fused.spectrum._vocabulary
    monkeypatch.setattr(balora.fused.spectrum, "_vocabulary", lambda *a: (reads.append(1), real(*a))[1])
    for _ in range(3):
        spectrum.loss(hidden, Head(weight), k=3)
    assert len(reads) == 1
    weight.mul_(2)  # other weights loaded into it
    weight[0] = 0
    changed = spectrum.loss(hidden, Head(weight), k=3)
    torch.testing.assert_close(changed, HeadSpectrum().loss(hidden, Head(weight), k=3))
    reads.clear()
    trained = torch.nn.Parameter(weight)
    for _ in range(3):
        spectrum.loss(hidden, Head(trained), k=3)
    assert len(reads) == 3
