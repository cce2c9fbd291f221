"""Token scores equal their definitions on whole logits, in any chunks and blocks."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from balora.fused import Head, chunk_rows, logit_chunks, token_scores
from balora.fused.token_scores import IGNORED, TokenScores

module = sys.modules["balora.fused.token_scores"]
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.3},
    "softcap": {"softcap": 2.0},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0},
}


def head_of(vocabulary: int, width: int, dtype: torch.dtype, *, bias: bool = False, **settings: float) -> Head:
    weight = torch.randn(vocabulary, width, dtype=dtype)
    return Head(weight, torch.randn(vocabulary, dtype=dtype) if bias else None, **settings)


def naive(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> TokenScores:
    """The definitions, token by token, from whole logits."""

    def own(z: Tensor) -> TokenScores:
        log_p = z.log_softmax(-1)
        nats = [0.0 if label == IGNORED else row[label].item() for row, label in zip(log_p, labels, strict=True)]
        return TokenScores(torch.tensor(nats, dtype=torch.float64), z.argmax(-1), -(log_p.exp() * log_p).sum(-1))

    scores = own(logits)
    if teacher_logits is None:
        return scores
    p, q = teacher_logits.log_softmax(-1), logits.log_softmax(-1)
    return TokenScores(scores.log_p, scores.top1, scores.entropy, own(teacher_logits), (p.exp() * (p - q)).sum(-1))


def assert_same(found: TokenScores, expected: TokenScores, rtol: float, atol: float) -> None:
    assert torch.equal(found.top1, expected.top1)
    for name in ("log_p", "entropy", "divergence"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == torch.float64
            torch.testing.assert_close(a, b.double(), rtol=rtol, atol=atol, msg=name)
    assert (found.teacher is None) == (expected.teacher is None)
    if found.teacher is not None:
        assert_same(found.teacher, expected.teacher, rtol, atol)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of a few rows, and blocks of fewer, so that both are cut."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", {"cpu": 500})
    monkeypatch.setattr(module, "FEWEST_ROWS", 5)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", {"cpu": 300})


@pytest.mark.parametrize("quirk", HEADS)
@pytest.mark.parametrize("taught", ["alone", "same head", "own head"])
@settings(max_examples=12, deadline=None)
@given(tokens=st.integers(1, 23), vocabulary=st.sampled_from([2, 63, 64, 97, 130]), seed=st.integers(0, 99))
def test_scores_are_those_of_whole_logits(quirk, taught, tokens, vocabulary, seed):
    torch.manual_seed(seed)
    head = head_of(vocabulary, 6, torch.float64, **HEADS[quirk])
    own = head_of(vocabulary, 6, torch.float64, **HEADS[quirk])
    other = {"alone": None, "same head": head, "own head": own}[taught]
    hidden, teacher_hidden = torch.randn(2, tokens, 6, dtype=torch.float64)
    labels = torch.randint(vocabulary, (tokens,)).where(torch.rand(tokens) < 0.7, IGNORED)
    found = token_scores(hidden, head, labels, *(() if other is None else (teacher_hidden, other)), entropy=True)
    expected = naive(head.logits(hidden), labels, None if other is None else other.logits(teacher_hidden))
    assert_same(found, expected, 1e-11, 1e-11)


def test_logits_take_the_place_of_hidden_states_and_stay_as_they_are():
    logits, teacher_logits = torch.randn(2, 12, 97, dtype=torch.float64)
    kept, labels = logits.clone(), torch.randint(97, (12,))
    found = token_scores(logits, None, labels, teacher_logits, None, entropy=True)
    assert_same(found, naive(logits, labels, teacher_logits), 1e-11, 1e-11)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_numbers_are_scored_as_their_own_logits_are(dtype):
    torch.manual_seed(0)
    head = head_of(997, 16, dtype)
    hidden, teacher_hidden = (2 * torch.randn(2, 300, 16)).to(dtype)
    labels = torch.randint(997, (300,))
    found = token_scores(hidden, head, labels, teacher_hidden, head, entropy=True)
    logits, taught = (torch.cat([z.clone() for z in logit_chunks(h, head, 7)]) for h in (hidden, teacher_hidden))
    expected = naive(logits.double(), labels, taught.double())
    assert torch.equal(found.top1, logits.argmax(-1))
    for name in ("log_p", "entropy", "divergence"):
        torch.testing.assert_close(getattr(found, name).mean(), getattr(expected, name).mean(), rtol=1e-6, atol=0)


def test_the_first_of_equal_tokens_is_the_likeliest():
    logits = torch.zeros(3, 200)
    logits[1, [70, 71, 199]] = 1.0
    logits[2, 197] = 1.0
    assert token_scores(logits, None, torch.full((3,), IGNORED)).top1.tolist() == [0, 70, 197]


def test_a_model_does_not_differ_from_itself_at_all():
    head, hidden = head_of(130, 6, torch.float32), torch.randn(20, 6)
    scores = token_scores(hidden, head, torch.full((20,), IGNORED), hidden.clone(), head)
    assert not scores.divergence.any()
    assert torch.equal(scores.top1, scores.teacher.top1)


def test_no_tokens_have_no_scores():
    head = head_of(130, 6, torch.float32)
    scores = token_scores(torch.empty(0, 6), head, torch.empty(0, dtype=torch.long), torch.empty(0, 6), head)
    assert len(scores.log_p) == len(scores.divergence) == 0


def test_no_chunk_has_more_rows_than_it_may():
    head, hidden = head_of(97, 6, torch.float32), torch.randn(23, 6)
    rows = chunk_rows(hidden, head)
    assert [len(z) for z in logit_chunks(hidden, head, rows)] == [5, 5, 5, 5, 3]
