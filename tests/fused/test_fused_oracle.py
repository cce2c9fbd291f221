"""The fused objective against the float64 oracle: every term's value and gradient to 1e-9 relative."""

import pytest
import torch
from shared_paths import VECTORS
from vectors import CASES, assert_meets, named

import balora.fused.chunks
import balora.fused.row_gradients
import balora.fused.spectrum
from balora import BALoraConfig
from balora.fused import Head, HeadSpectrum, TokenTerm, fused_token_loss
from balora.fused.generation import Taught

pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason=f"{VECTORS} is absent: no oracle to compare with")


@pytest.fixture(params=["as shipped", "many small chunks"])
def chunking(request, monkeypatch):
    if request.param == "many small chunks":
        monkeypatch.setattr(balora.fused.chunks, "CHUNK_ELEMENTS", {"cpu": 0})
        monkeypatch.setattr(balora.fused.chunks, "FEWEST_ROWS", 5)
        monkeypatch.setattr(balora.fused.row_gradients, "BLOCK_ELEMENTS", 200)
        monkeypatch.setattr(balora.fused.row_gradients, "COLUMNS", 2)
        monkeypatch.setattr(balora.fused.spectrum, "VOCABULARY_CHUNK", 20)


def fused_term(case: dict, term: str, direction: str = "forward") -> tuple[torch.Tensor, torch.Tensor]:
    """The whole loss with this term's weight at 1 and nothing else, and the term as logged."""
    scalars, mask = case["scalars"], case["attention_mask"]
    head = Head(case["head_weight"], case["head_bias"], softcap=scalars["softcap"])
    config = BALoraConfig(
        temperature=scalars.get("temperature", 2.0),
        top_k=scalars.get("top_k", 20),
        spectral_k=scalars.get("k", 10),
        consistency_direction=direction,
    )
    if term == "spectral":
        loss = HeadSpectrum().loss(case["student_hidden"][mask.bool()], head, k=config.spectral_k)
        return loss, loss.detach()
    labels = case["labels"] if term == "task" else torch.full_like(case["labels"], -100)
    taught = None
    if term == "consistency":
        taught = Taught(case["teacher_hidden"], head, torch.ones(len(mask), dtype=torch.bool))
    loss, components = fused_token_loss(
        case["student_hidden"],
        head,
        labels,
        mask,
        taught,
        config,
        {} if term == "task" else {term: TokenTerm(1.0, needs_teacher=term == "consistency")},
        total_items=(case["labels"][:, 1:] != -100).sum() if term == "task" else 1,
        share=1.0,
    )
    return loss, components[term]


@pytest.mark.parametrize("name", named("nlg_"))
def test_every_term_meets_the_oracle(name, chunking):
    case = dict(CASES[name])
    case["student_hidden"] = case["student_hidden"].clone().requires_grad_()
    loss, logged = fused_term(case, *name.rsplit("/", 1)[1].split("_"))
    assert_meets(case, loss, case["student_hidden"], "grad_student_hidden")
    torch.testing.assert_close(logged, case["loss"][0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [name for name in named("nlg_") if name.endswith("spectral")])
def test_the_randomized_spectral_term_meets_the_oracle(name, monkeypatch):
    monkeypatch.setattr(balora.fused.spectrum, "EXACT_ROWS", 0)
    loss, _ = fused_term(CASES[name], "spectral")
    torch.testing.assert_close(loss, CASES[name]["loss"][0], rtol=1e-3, atol=0)
