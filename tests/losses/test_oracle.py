"""Every loss against the float64 oracle: value and gradient to 1e-9 relative."""

import json

import pytest
import torch
from safetensors import safe_open
from shared_paths import VECTORS

from balora.losses import consistency_loss, covariance_diversity_loss, spectral_loss, topk_entropy_loss

pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason=f"{VECTORS} is absent: no oracle to compare with")


def read_cases() -> dict[str, dict]:
    if not VECTORS.exists():
        return {}
    with safe_open(VECTORS, "pt") as file:
        cases = {name: {"scalars": json.loads(text)} for name, text in file.metadata().items()}
        for key in file.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
            case, tensor = key.rsplit("/", 1)
            cases[case][tensor] = file.get_tensor(key)
    return cases


CASES = read_cases()


def named(prefix: str) -> list[str]:
    return sorted(name for name in CASES if name.startswith(prefix))


def assert_meets(case: dict, loss: torch.Tensor, inputs: torch.Tensor, grad_name: str) -> None:
    (gradient,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(loss, case["loss"][0], rtol=1e-9, atol=0)
    scale = case[grad_name].abs().max().item()
    torch.testing.assert_close(gradient, case[grad_name], rtol=1e-9, atol=1e-9 * scale)


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
