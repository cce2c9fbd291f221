"""PiSSA's start: against the oracle, against PEFT's own, seeded, and refused where it would do harm."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from shared_paths import VECTORS
from tiny_models import inputs_for, make, without_labels

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.adapters.pissa import principal_factors
from balora.adapters.teacher import lora_layers


@pytest.mark.parametrize("case", ["pissa_12x9x3", "pissa_7x15x4"])
def test_factors_meet_the_oracle(case):
    if not VECTORS.exists():
        pytest.skip(f"{VECTORS} is absent: no oracle to compare with")
    with safe_open(VECTORS, "pt") as file:
        weight, product, residual = (file.get_tensor(f"{case}/{name}") for name in ("weight", "product", "residual"))
    r = int(case.rsplit("x", 1)[-1])
    a, b = principal_factors(weight, r, scaling=0.5)
    assert a.shape == (r, weight.shape[1])
    assert b.shape == (weight.shape[0], r)
    torch.testing.assert_close(0.5 * b @ a, product, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weight - 0.5 * b @ a, residual, rtol=1e-9, atol=1e-12)


def test_randomized_factors_come_near_the_exact_ones_and_repeat():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 40, generator=generator)).Q for n in (96, 80))
    weight = u * torch.logspace(0, -3, 40) @ v.T
    exact, fast, again = (
        b @ a
        for a, b in (principal_factors(weight, 8), *(principal_factors(weight, 8, niter=4, seed=3) for _ in range(2)))
    )
    assert torch.equal(fast, again)
    assert (exact - fast).norm() < 1e-4 * exact.norm()


def test_randomized_start_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    principal_factors(torch.ones(9, 7), 2, niter=2, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_start_is_peft_s_own(name):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    ours = get_balora_model(make(name), BALoraConfig(method="pissa", **settings))
    fan_in_fan_out = name == "gpt2"
    theirs = get_peft_model(
        make(name), LoraConfig(init_lora_weights="pissa", fan_in_fan_out=fan_in_fan_out, **settings)
    )
    for layer, other in zip(lora_layers(ours).values(), lora_layers(theirs).values(), strict=True):
        torch.testing.assert_close(layer.get_delta_weight("default"), other.get_delta_weight("default"))
        torch.testing.assert_close(layer.get_base_layer().weight, other.get_base_layer().weight)


def test_rank_beyond_the_weight_s_own_still_starts_as_the_pretrained_model():
    inputs = without_labels(inputs_for("llama"))
    expected = make("llama")(**inputs).logits
    model = get_balora_model(make("llama"), BALoraConfig(r=48, lora_alpha=48, target_modules="all-linear")).eval()
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, expected, rtol=0, atol=1e-5)


def test_an_embedding_cannot_be_split():
    with pytest.raises(BALoraError, match=r"embed_tokens is a Embedding; PiSSA splits linear layers only"):
        get_balora_model(make("llama"), BALoraConfig(target_modules=["embed_tokens"]))


def test_a_shared_weight_cannot_be_split():
    with pytest.raises(BALoraError, match=r"lm_head shares its weight .*embed_tokens"):
        get_balora_model(make("llama-tied"), BALoraConfig(target_modules=["q_proj", "lm_head"]))


def test_a_start_that_takes_long_shows_progress(monkeypatch, capsys):
    config = BALoraConfig(r=2, target_modules="all-linear")
    get_balora_model(make("llama"), config)
    assert "PiSSA start" not in capsys.readouterr().err
    monkeypatch.setattr("balora.adapters.pissa.SHOWN_AFTER", 0.0)
    get_balora_model(make("llama"), config)
    assert "14/14" in capsys.readouterr().err
