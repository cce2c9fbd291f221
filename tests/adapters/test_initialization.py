"""Initialization of PiSSA, MiLoRA and OLoRA, compared with an oracle and with PEFT; seeding and errors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from shared_paths import VECTORS
from tiny_models import inputs_for, make, train_steps, with_reg, without_labels

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.adapters.initialization import milora_factors, olora_factors, pissa_factors
from balora.adapters.teacher import lora_layers

#: Spectra of the large matrices that are decomposed by their Gram matrix.
SPECTRA = {
    "flat": torch.linspace(1, 0.3, 260),
    "decaying": torch.logspace(0, -3, 260),
    "deficient": torch.cat([torch.linspace(1, 0.5, 30), torch.zeros(230)]),
    "zero": torch.zeros(260),
}
RESIDUAL = ["pissa", "olora", "milora"]


@pytest.mark.parametrize("case", ["pissa_12x9x3", "pissa_7x15x4"])
def test_pissa_factors_match_the_oracle(case):
    if not VECTORS.exists():
        pytest.skip(f"{VECTORS} is absent: no oracle to compare with")
    with safe_open(VECTORS, "pt") as file:
        weight, product, residual = (file.get_tensor(f"{case}/{name}") for name in ("weight", "product", "residual"))
    r = int(case.rsplit("x", 1)[-1])
    a, b = pissa_factors(weight, r, scaling=0.5)
    assert a.shape == (r, weight.shape[1])
    assert b.shape == (weight.shape[0], r)
    torch.testing.assert_close(0.5 * b @ a, product, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(weight - 0.5 * b @ a, residual, rtol=1e-9, atol=1e-12)


def error(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, expected: np.ndarray) -> float:
    """Return the largest entry of B·A − expected over the largest singular value."""
    largest = np.linalg.norm(weight.double().numpy(), 2) or 1.0
    return np.abs((b.double() @ a.double()).numpy() - expected).max() / largest


@pytest.mark.parametrize("shape", [(260, 260), (300, 260), (260, 300)], ids=str)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_large_matrices_are_decomposed_more_exactly_than_by_a_float32_svd(shape, spectrum):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 260, generator=generator, dtype=torch.float64)).Q for n in shape)
    weight = (u * SPECTRA[spectrum].double() @ v.T).float()
    if spectrum == "flat":
        weight = weight.T.contiguous().T  # as Conv1D stores it
    u, s, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    plain_u, plain_s, plain_vh = torch.linalg.svd(weight, full_matrices=False)
    for factors, part in ((pissa_factors, slice(12)), (milora_factors, slice(-12, None))):
        a, b = factors(weight, 12)
        assert a.dtype == b.dtype == torch.float32
        assert torch.isfinite(a).all()
        assert torch.isfinite(b).all()
        best = u[:, part] * s[part] @ vh[part]
        plain = error(weight, plain_vh[part], plain_u[:, part] * plain_s[part], best)
        assert error(weight, a, b, best) <= max(plain, 1e-8)
        # Balanced: a component's row and column have equal norms.
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), rtol=1e-4, atol=1e-7)
    a, b = pissa_factors(weight, 260)
    assert error(weight, a, b, weight.double().numpy()) < 1e-6


@pytest.mark.parametrize("method", RESIDUAL)
def test_start_does_not_depend_on_the_number_of_threads(method):
    config = BALoraConfig(method=method, r=4, target_modules="all-linear")
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            states.append(get_balora_model(make("llama"), config).state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_randomized_pissa_factors_are_close_to_exact_and_repeatable():
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 40, generator=generator)).Q for n in (96, 80))
    weight = u * torch.logspace(0, -3, 40) @ v.T
    exact, fast, again = (
        b @ a for a, b in (pissa_factors(weight, 8), *(pissa_factors(weight, 8, niter=4, seed=3) for _ in range(2)))
    )
    assert torch.equal(fast, again)
    assert (exact - fast).norm() < 1e-4 * exact.norm()


def test_randomized_svd_does_not_use_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pissa_factors(torch.ones(9, 7), 2, niter=2, seed=1)
    assert torch.equal(torch.rand(3), expected)


@settings(deadline=None, max_examples=40)
@given(
    out=st.integers(1, 9),
    inner=st.integers(1, 9),
    r=st.integers(1, 11),
    scaling=st.sampled_from([0.5, 1.0, 2.0]),
    seed=st.integers(0, 1000),
)
def test_milora_factors_are_the_residual_of_the_best_approximation(out, inner, r, scaling, seed):
    weight = np.random.default_rng(seed).standard_normal((out, inner))
    a, b = milora_factors(torch.from_numpy(weight), r, scaling=scaling)
    kept = min(r, out, inner)
    assert (a.shape, b.shape) == ((kept, inner), (out, kept))
    u, s, vh = np.linalg.svd(weight)
    best = sum((s[i] * np.outer(u[:, i], vh[i]) for i in range(len(s) - kept)), np.zeros_like(weight))
    np.testing.assert_allclose(weight - scaling * (b @ a).numpy(), best, rtol=0, atol=1e-9)
    # Balanced: a component's row and column have equal norms.
    np.testing.assert_allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_milora_trains_minor_components_and_freezes_principal_ones(name):
    config = BALoraConfig(method="milora+reg", r=4, lora_alpha=8, target_modules="all-linear", seed=1)
    layers = lora_layers(get_balora_model(make(name), config))
    again = lora_layers(get_balora_model(make(name), config))
    pretrained = dict(make(name).named_modules())
    for key, layer in layers.items():
        u, s, vh = np.linalg.svd(pretrained[key].weight.detach().double().numpy(), full_matrices=False)
        minor, principal = (u[:, -4:] * s[-4:]) @ vh[-4:], (u[:, :-4] * s[:-4]) @ vh[:-4]
        np.testing.assert_allclose(layer.get_delta_weight("default").detach(), minor, rtol=0, atol=1e-6)
        np.testing.assert_allclose(layer.get_base_layer().weight.detach(), principal, rtol=0, atol=1e-6)
        assert torch.equal(layer.lora_A["default"].weight, again[key].lora_A["default"].weight)


def gram_schmidt(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute Q and R of a full-rank matrix column by column, with a positive diagonal."""
    columns, upper = [], torch.zeros(min(weight.shape), weight.shape[1], dtype=weight.dtype)
    for j in range(weight.shape[1]):
        rest = weight[:, j].clone()
        for i, column in enumerate(columns):
            upper[i, j] = column @ rest
            rest -= upper[i, j] * column
        if len(columns) < len(upper):
            upper[j, j] = rest.norm()
            columns.append(rest / rest.norm())
    return torch.stack(columns, dim=1), upper


@settings(deadline=None, max_examples=40)
@given(out=st.integers(1, 9), inner=st.integers(1, 9), r=st.integers(1, 11), seed=st.integers(0, 1000))
def test_olora_factors_match_gram_schmidt(out, inner, r, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inner, generator=generator, dtype=torch.float64)
    weight += 3 * torch.eye(out, inner, dtype=torch.float64)  # away from singular
    a, b = olora_factors(weight, r)
    q, upper = gram_schmidt(weight)
    kept = min(r, out, inner)
    assert (a.shape, b.shape) == ((kept, inner), (out, kept))
    signs = a.diagonal().sign()[:, None]  # of a row of A and its column of B, which a decomposition may choose
    torch.testing.assert_close(signs * a, upper[:kept], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b * signs.T, q[:, :kept], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b.T @ b, torch.eye(kept, dtype=torch.float64))


def test_olora_equals_peft_exactly():
    inputs = without_labels(inputs_for("llama"))
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    ours = get_balora_model(make("llama"), BALoraConfig(method="olora+reg", **settings)).eval()
    theirs = get_peft_model(make("llama"), LoraConfig(init_lora_weights="olora", **settings)).eval()
    for layer, other in zip(lora_layers(ours).values(), lora_layers(theirs).values(), strict=True):
        assert torch.equal(layer.lora_A["default"].weight, other.lora_A["default"].weight)
        assert torch.equal(layer.lora_B["default"].weight, other.lora_B["default"].weight)
        torch.testing.assert_close(layer.get_base_layer().weight, other.get_base_layer().weight, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, rtol=0, atol=1e-6)


def test_olora_decomposes_conv1d_like_a_linear_layer():
    config = BALoraConfig(
        method="olora+reg", r=4, lora_alpha=8, target_modules=["c_attn"]
    )  # GPT-2's Conv1D, (in, out)
    pretrained = make("gpt2").transformer.h[0].attn.c_attn.weight.detach()
    layer = next(iter(lora_layers(get_balora_model(make("gpt2"), config)).values()))
    q, upper = torch.linalg.qr(pretrained.T)
    torch.testing.assert_close(layer.lora_A["default"].weight, upper[:4])
    torch.testing.assert_close(layer.lora_B["default"].weight, q[:, :4])
    torch.testing.assert_close(layer.get_base_layer().weight, pretrained - 2 * (q[:, :4] @ upper[:4]).T)


def test_loading_olora_needs_no_decomposition(tmp_path, monkeypatch):
    inputs = without_labels(inputs_for("llama"))
    config = BALoraConfig(method="olora+reg", r=4, lora_alpha=8, target_modules="all-linear")
    model = get_balora_model(make("llama"), config)
    train_steps(model, inputs_for("llama"))
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.linalg, "qr", None)
    stock = PeftModel.from_pretrained(make("llama"), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_initialization_equals_peft(name):
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    ours = get_balora_model(make(name), BALoraConfig(method="ba-lora", **settings))
    fan_in_fan_out = name == "gpt2"
    theirs = get_peft_model(
        make(name), LoraConfig(init_lora_weights="pissa", fan_in_fan_out=fan_in_fan_out, **settings)
    )
    for layer, other in zip(lora_layers(ours).values(), lora_layers(theirs).values(), strict=True):
        torch.testing.assert_close(layer.get_delta_weight("default"), other.get_delta_weight("default"))
        torch.testing.assert_close(layer.get_base_layer().weight, other.get_base_layer().weight)


@pytest.mark.parametrize("method", RESIDUAL)
def test_rank_above_the_weights_still_starts_as_the_pretrained_model(method):
    inputs = without_labels(inputs_for("llama"))
    expected = make("llama")(**inputs).logits
    config = BALoraConfig(method=with_reg(method), r=48, lora_alpha=48, target_modules="all-linear")
    model = get_balora_model(make("llama"), config).eval()
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", RESIDUAL)
def test_embedding_target_raises(method):
    with pytest.raises(BALoraError, match=rf"embed_tokens is a Embedding, and {method} splits linear layers only"):
        get_balora_model(make("llama"), BALoraConfig(method=with_reg(method), target_modules=["embed_tokens"]))


@pytest.mark.parametrize("method", RESIDUAL)
def test_shared_weight_raises(method):
    with pytest.raises(BALoraError, match=r"lm_head shares its weight .*embed_tokens"):
        get_balora_model(
            make("llama-tied"), BALoraConfig(method=with_reg(method), target_modules=["q_proj", "lm_head"])
        )


@pytest.mark.parametrize("method", RESIDUAL)
def test_slow_initialization_shows_a_progress_bar(method, monkeypatch, capsys):
    monkeypatch.setattr(
        "transformers.utils.logging._tqdm_active", True
    )  # the program, run in this process, hides bars
    config = BALoraConfig(method=with_reg(method), r=2, target_modules="all-linear")
    get_balora_model(make("llama"), config)
    assert "start" not in capsys.readouterr().err
    monkeypatch.setattr("balora.adapters.initialization.PROGRESS_BAR_DELAY", 0.0)
    get_balora_model(make("llama"), config)
    shown = capsys.readouterr().err
    assert f"{method} start" in shown
    assert "14/14" in shown
