"""Every loss against the float64 oracle: value and gradient to 1e-9 relative."""

import pytest
import torch
from shared_paths import VECTORS
from vectors import CASES, assert_meets, named

from balora.losses import (
    alignment_loss,
    consistency_loss,
    covariance_diversity_loss,
    semantic_loss,
    spectral_loss,
    topk_entropy_loss,
)

pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason=f"{VECTORS} is absent: no oracle to compare with")


@pytest.mark.parametrize("name", named("nlu_"))
def test_classification_terms_meet_the_oracle(name):
    case = CASES[name]
    student = case["student"].requires_grad_()
    scalars = case["scalars"]
    if "consistency" in name:
        loss = consistency_loss(student, case["teacher"], temperature=scalars["temperature"])
    elif "diversity" in name:
        loss = covariance_diversity_loss(student)
    else:
        loss = spectral_loss(student, k=scalars["k"], normalization="nuclear")
    assert_meets(case, loss, student, "grad_student")


def head(case: dict, hidden: torch.Tensor) -> torch.Tensor:
    logits = hidden @ case["head_weight"].T
    if "head_bias" in case:
        logits = logits + case["head_bias"]
    cap = case["scalars"]["softcap"]
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("name", [name for name in named("nlg_") if not name.endswith("/task")])
def test_generation_terms_meet_the_oracle(name):
    case = CASES[name]
    hidden = case["student_hidden"].requires_grad_()
    logits, mask, scalars = head(case, hidden), case["attention_mask"], case["scalars"]
    if "consistency" in name:
        loss = consistency_loss(
            logits,
            head(case, case["teacher_hidden"]),
            temperature=scalars["temperature"],
            direction=name.rsplit("_", 1)[-1],
            mask=mask,
        )
    elif "diversity" in name:
        loss = topk_entropy_loss(logits, top_k=scalars["top_k"], mask=mask)
    else:
        loss = spectral_loss(logits, k=scalars["k"], normalization="frobenius", mask=mask)
    assert_meets(case, loss, hidden, "grad_student_hidden")


@pytest.mark.parametrize("name", named("alignment_"))
@pytest.mark.parametrize("factor", ["A", "B"])
def test_alignment_meets_the_oracle(name, factor):
    case = CASES[name]
    inputs = {key: case[key].clone().requires_grad_() for key in "AB"}
    loss = alignment_loss(inputs["A"], inputs["B"], case["scalars"]["scaling"])
    assert_meets(case, loss, inputs[factor], f"grad_{factor}")


@pytest.mark.parametrize("name", named("semantic_"))
@pytest.mark.parametrize("factor", ["A", "B", "M"])
def test_semantic_guidance_meets_the_oracle(name, factor):
    case = CASES[name]
    inputs = {key: case[key].clone().requires_grad_() for key in "ABM"}
    loss = semantic_loss(inputs["A"], inputs["B"], inputs["M"], case["s"])
    assert_meets(case, loss, inputs[factor], f"grad_{factor}")
