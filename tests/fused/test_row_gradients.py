"""Rows of logits become their gradient: properties that hold whatever the numbers."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.fused.row_gradients import RowObjective, RowWeights, differentiate_rows, largest
from balora.losses import consistency_loss, topk_entropy_loss


@given(st.integers(1, 5), st.integers(1, 900), st.integers(1, 30), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_the_largest_are_topk_s(rows, columns, k, seed):
    z = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    values, where = largest(z, k)
    expected = z.topk(min(k, columns), dim=-1)
    assert torch.equal(values, expected.values)
    assert torch.equal(where, expected.indices)


@given(
    st.integers(1, 7),
    st.integers(2, 400),
    st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    st.sampled_from(["forward", "reverse"]),
    st.sampled_from([None, 4.0]),
    st.floats(0.01, 60),
    st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_gradients_are_autograd_s(rows, columns, temperature, direction, softcap, size, seed):
    generator = torch.Generator().manual_seed(seed)
    raw = (size * torch.randn(rows, columns, generator=generator, dtype=torch.float64)).requires_grad_()
    known = size * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    labels = torch.randint(columns, (rows,), generator=generator)
    share = torch.rand(3, rows, generator=generator, dtype=torch.float64)
    z, teacher = (x if softcap is None else softcap * torch.tanh(x / softcap) for x in (raw, known))
    terms = [F.cross_entropy(z, labels, reduction="none")]
    terms.append(
        torch.stack(
            [
                consistency_loss(a, b, temperature=temperature, direction=direction)
                for a, b in zip(z, teacher, strict=True)
            ]
        )
    )
    terms.append(torch.stack([topk_entropy_loss(row, top_k=5) for row in z]))
    terms = torch.stack(terms)
    (expected,) = torch.autograd.grad((share * terms).sum(), raw)
    gradient = raw.detach().clone()
    objective = RowObjective(temperature, direction == "reverse", 5, softcap)
    values = differentiate_rows(gradient, known.clone(), RowWeights(labels, *share), objective)
    torch.testing.assert_close(values, terms.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-10)


def test_large_logits_in_bfloat16_stay_finite():
    z = torch.tensor([[3e4, -3e4, 1e4, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.bfloat16)
    ones = torch.ones(2)
    weights = RowWeights(torch.tensor([1, -100]), ones, ones, ones)
    values = differentiate_rows(z, -z.clone(), weights, RowObjective(2.0, False, 20))
    assert values.isfinite().all()
    assert z.isfinite().all()
    assert values[0, 1] == 0
