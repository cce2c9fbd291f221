"""The float64 oracle: each equation's value and gradient on small random inputs."""

import json

import torch
from safetensors import safe_open
from shared_paths import VECTORS


def read_cases() -> dict[str, dict]:
    """Return each case's tensors by name and its scalars; no cases where the oracle is missing."""
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
    torch.testing.assert_close(loss.detach(), case["loss"][0], rtol=1e-9, atol=0)
    scale = case[grad_name].abs().max().item()
    torch.testing.assert_close(gradient, case[grad_name], rtol=1e-9, atol=1e-9 * scale)
