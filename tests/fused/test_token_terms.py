"""Per-token terms without a closed form: values and gradients against autograd on whole logits, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import balora.fused.chunks
from balora import BALoraConfig
from balora.fused import Head, Taught, TokenTerm, fused_token_loss
from balora.fused.token_terms import differentiate_token_loss

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 9, 6, 23
PICKED = torch.tensor([True, False, True, False])
RATE = 0.4


def squared_distance(student: Tensor, teacher: Tensor | None) -> Tensor:
    return (student.softmax(-1) - teacher.softmax(-1)).square().sum(-1)


def log_normalizer(student: Tensor, teacher: Tensor | None) -> Tensor:
    assert teacher is None
    return student.logsumexp(-1).square()


TERMS = {
    "squared_distance": TokenTerm(0.7, needs_teacher=True, loss=squared_distance),
    "log_normalizer": TokenTerm(0.3, loss=log_normalizer),
}


def tensors(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "hidden": (ROWS, LENGTH, WIDTH),
        "teacher_hidden": (ROWS, LENGTH, WIDTH),
        "weight": (VOCABULARY, WIDTH),
        "bias": (VOCABULARY,),
    }
    found = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }
    found["labels"] = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    found["labels"][1, 4:] = -100
    found["mask"] = torch.ones(ROWS, LENGTH, dtype=torch.long)
    found["mask"][0, -3:] = 0  # labelled tokens among them: they have a task loss and no regularizer
    return found


@pytest.fixture(params=["as shipped", "many small chunks"])
def chunking(request, monkeypatch):
    if request.param == "many small chunks":
        monkeypatch.setattr(balora.fused.chunks, "CHUNK_ELEMENTS", {"cpu": 0})
        monkeypatch.setattr(balora.fused.chunks, "FEWEST_ROWS", 4)


@pytest.mark.parametrize("names", [["squared_distance"], ["log_normalizer"], list(TERMS)])
@pytest.mark.parametrize("shipped", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_values_and_gradients_are_those_of_autograd(names, shipped, softcap, scale, chunking):
    given = tensors()
    trained = [given[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    closed = {"consistency": TokenTerm(0.2, needs_teacher=True), "diversity": TokenTerm(0.1)} if shipped else {}
    terms = {name: TERMS[name] for name in names}
    head = Head(given["weight"], given["bias"], scale, softcap)
    before = Head((given["weight"] * 0.9).detach(), given["bias"].detach(), scale, softcap)  # the head is trained too
    taught = Taught(given["teacher_hidden"][PICKED], before, PICKED, RATE)

    def fused(terms: dict[str, TokenTerm]) -> tuple[Tensor, dict[str, Tensor]]:
        needs = any(term.needs_teacher for term in terms.values())
        return fused_token_loss(
            given["hidden"],
            head,
            given["labels"],
            given["mask"],
            taught if needs else None,
            BALoraConfig(top_k=5),
            terms,
            total_items=20,
            share=0.8,
        )

    loss, components = fused(closed | terms)
    gradients = torch.autograd.grad(loss, trained)
    rest, _ = fused(closed)
    others = torch.autograd.grad(rest, trained)
    assert set(components) == {"task", *closed, *terms}

    logits, teacher_logits = head.logits(given["hidden"]), before.logits(given["teacher_hidden"])
    mask = given["mask"].bool()
    seen = mask & PICKED.unsqueeze(-1)
    naive = {
        "squared_distance": squared_distance(logits[seen], teacher_logits[seen]).sum() / RATE,
        "log_normalizer": log_normalizer(logits[mask], None).sum(),
    }
    naive = {name: 0.8 * naive[name] / mask.sum() for name in names}
    for name, value in naive.items():
        torch.testing.assert_close(components[name], value.detach(), rtol=1e-10, atol=0)
    added = sum(terms[name].weight * value for name, value in naive.items())
    torch.testing.assert_close(loss, rest + added, rtol=1e-10, atol=0)
    for gradient, other, own in zip(gradients, others, torch.autograd.grad(added, trained), strict=True):
        torch.testing.assert_close(gradient, other + own, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_half_precision_stays_near_double(dtype, softcap, chunking):
    """The function sees float32; only the products with the head are in half precision."""
    found = {}
    for precision in (torch.float64, dtype):
        given = tensors(precision)
        hidden = given["hidden"].requires_grad_()
        head = Head(given["weight"], given["bias"], softcap=softcap)
        taught = Taught(given["teacher_hidden"][PICKED], head, PICKED, RATE)
        common = given["labels"], given["mask"], taught, BALoraConfig(), TERMS
        loss, components = fused_token_loss(hidden, head, *common, total_items=20, share=1.0)
        loss.backward()
        assert components["log_normalizer"].dtype == torch.promote_types(precision, torch.float32)
        found[precision] = loss.double(), hidden.grad.double()
    (exact, gradient), (rounded, rounded_gradient) = found.values()
    torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=0)
    torch.testing.assert_close(rounded_gradient, gradient, rtol=0, atol=3e-2 * gradient.abs().max().item())


def test_autocast_does_not_reach_the_function():
    def product(student: Tensor, teacher: Tensor | None) -> Tensor:
        result = student @ torch.eye(VOCABULARY)
        assert student.dtype == result.dtype == torch.float32
        return result.logsumexp(-1)

    given = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = fused_token_loss(
            given["hidden"].requires_grad_(),
            Head(given["weight"]),
            given["labels"],
            given["mask"],
            None,
            BALoraConfig(),
            {"product": TokenTerm(1.0, loss=product)},
            total_items=20,
            share=1.0,
        )
    logits, targets = F.linear(given["hidden"], given["weight"]), given["labels"][:, 1:].flatten()
    expected = logits[given["mask"].bool()].logsumexp(-1).mean()
    task = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum") / 20
    torch.testing.assert_close(loss, (expected + task).detach(), rtol=2e-2, atol=0, check_dtype=False)


def test_rows_of_weight_0_cannot_reach_the_gradient():
    logits = torch.tensor([[1.0, 2.0], [torch.inf, torch.nan]])
    values, gradient = differentiate_token_loss(
        lambda student, _: student.square().sum(-1), logits, None, torch.tensor([0.5, 0.0]), softcap=None
    )
    torch.testing.assert_close(values, torch.tensor([5.0, 0.0]))
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


def test_a_loss_without_one_value_per_token_is_refused():
    with pytest.raises(ValueError, match=r"a per-token loss returned \(\) for 3 tokens"):
        differentiate_token_loss(lambda student, _: student.mean(), torch.ones(3, 4), None, torch.ones(3), None)
