"""Initialization of LoRA-GA and CorDA from data, compared with naive code and with PEFT."""

import dataclasses
import importlib.util
import json
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraGAConfig, preprocess_loraga
from peft.tuners.lora.config import CordaConfig
from tiny_models import CAUSAL, inputs_for, make, train_steps, with_reg, without_labels

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.data_initialization import input_covariances
from balora.adapters.initialization import corda_factors, milora_factors, null_factors, pissa_factors
from balora.adapters.teacher import lora_layers

METHODS = ["lora-ga", "corda", "lora-null", "lora-null-v2"]
ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
EXACT = {"rtol": 0, "atol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore:balora")
both = pytest.mark.parametrize("method", METHODS)


def base_model(name: str) -> torch.nn.Module:
    """Build a model without dropout, which LoRA-GA leaves on."""
    model = make(name)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def batches_for(name: str, number: int = 2) -> list[dict[str, torch.Tensor]]:
    return [inputs_for(name, seed=seed) for seed in range(1, number + 1)]


def adapted(name: str, method: str, **changed) -> BALoraModel:
    batches = changed.pop("batches", batches_for(name))
    return get_balora_model(
        base_model(name), BALoraConfig(method=with_reg(method), **{**ADAPTER, **changed}), iter(batches)
    )


def weight_gradients(name: str, batches: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Compute the unmodified model's loss gradients in its linear weights `(out, in)`, as a mean over batches."""
    model = make(name)
    for batch in batches:
        model(**batch).loss.backward()
    modules = dict(model.named_modules())
    layers = lora_layers(get_peft_model(make(name), LoraConfig(**ADAPTER)))
    gradients = {key: modules[key].weight.grad / len(batches) for key in layers}
    return {key: (g.T if layers[key].fan_in_fan_out else g).double().numpy() for key, g in gradients.items()}


# ------------------------------------------------------------------ both


@both
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5-untied"])
def test_starts_as_the_pretrained_model_and_reloads(name, method, tmp_path):
    inputs = without_labels(inputs_for(name))
    expected = make(name)(**inputs).logits
    model = adapted(name, method).eval()
    torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, expected, **EXACT)
    product = next(iter(lora_layers(model).values())).get_delta_weight("default")
    assert product.abs().max() > 0, "nothing has moved into the adapter"

    train_steps(model, inputs_for(name))
    trained = model(**inputs).logits
    assert (trained - expected).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, trained, **EXACT)
    assert stock.peft_config["default"].r == 8
    # Loading needs no data and restores the teacher.
    reloaded = BALoraModel.from_pretrained(make(name), tmp_path)
    assert torch.equal(reloaded(**inputs).logits, trained)
    torch.testing.assert_close(
        reloaded.teacher_forward(**inputs).logits, model.teacher_forward(**inputs).logits, **EXACT
    )
    if name in CAUSAL:
        torch.testing.assert_close(model.unload()(**inputs).logits, expected, **EXACT)


@both
def test_initialization_changes_only_the_factors(method):
    model, plain = adapted("llama", method), get_balora_model(make("llama"), BALoraConfig(**ADAPTER))
    for (name, module), (other_name, other) in zip(model.named_modules(), plain.named_modules(), strict=True):
        assert name == other_name
        assert vars(module).keys() == vars(other).keys(), name
        assert module.training == other.training, name
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            assert len(getattr(module, hooks)) == len(getattr(other, hooks)), name
    for (name, parameter), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        frozen = method == "lora-null-v2" and ".lora_A." in name
        assert parameter.requires_grad == (other.requires_grad and not frozen), name
        assert parameter.dtype == other.dtype, name
        assert parameter.grad is None, name


@both
def test_initialization_is_repeatable_and_restores_the_global_generator(method):
    """PEFT's own random initialization is overwritten; LoRA-GA uses its own seed."""
    factors, states = [], []
    for noise, seed in ((1, 3), (2, 3), (1, 4)):
        bases = make("gpt2"), make("gpt2")  # with dropout
        for started, base in zip((method, "olora"), bases, strict=True):
            torch.manual_seed(noise)
            config = BALoraConfig(method=with_reg(started), **ADAPTER, seed=seed)
            model = get_balora_model(base, config, batches_for("gpt2"))
            states.append(torch.get_rng_state())
            if started == method:
                factors.append([layer.lora_A["default"].weight for layer in lora_layers(model).values()])
        assert torch.equal(states[-2], states[-1])
    assert all(torch.equal(a, b) for a, b in zip(factors[0], factors[1], strict=True))
    differs = any(not torch.equal(a, b) for a, b in zip(factors[0], factors[2], strict=True))
    assert differs == (method == "lora-ga")


@both
def test_bfloat16_base_has_float32_factors_within_rounding(method):
    inputs = without_labels(inputs_for("llama"))
    expected = make("llama").bfloat16()(**inputs).logits.float()
    config = BALoraConfig(method=with_reg(method), **ADAPTER)
    model = get_balora_model(make("llama").bfloat16(), config, batches_for("llama"))
    assert all(layer.lora_A["default"].weight.dtype == torch.float32 for layer in lora_layers(model).values())
    logits = model.teacher_forward(**inputs).logits.float()
    assert (logits - expected).norm() < 2**-7 * expected.norm()


@both
def test_invalid_batches_raise(method):
    with pytest.raises(BALoraError, match=rf"start_batches: {method}\+reg initializes from data; give"):
        get_balora_model(make("llama"), BALoraConfig(method=with_reg(method), **ADAPTER))
    with pytest.raises(BALoraError, match=rf"start_batches: {method} needs data"):
        adapted("llama", method, batches=[])
    with pytest.raises(BALoraError, match="start_batches: a batch has no labels"):
        adapted("t5-untied", method, batches=[without_labels(inputs_for("t5-untied"))])
    with pytest.raises(BALoraError, match="embed_tokens is a Embedding"):
        adapted("llama", method, target_modules=["embed_tokens"])


@both
@pytest.mark.parametrize("trouble", ["unused", "not finite"])
def test_layer_without_data_raises(method, trouble):
    model = make("llama")
    if trouble == "unused":
        model.model.layers[1].spare = torch.nn.Linear(32, 32)
        targets, named = ["q_proj", "spare"], "layers.1.spare"
    else:
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
        targets, named = ["up_proj"], r"layers.\d.mlp.up_proj"
    config = BALoraConfig(method=with_reg(method), r=4, target_modules=targets)
    with pytest.raises(BALoraError, match=rf"start_batches: .*{named}.* leave it out of target_modules"):
        get_balora_model(model, config, batches_for("llama"))


def test_methods_initialized_from_weights_read_no_batches():
    def unread():
        pytest.fail("read")
        yield

    get_balora_model(make("llama"), BALoraConfig(method="ba-lora", **ADAPTER), unread())


# ------------------------------------------------------------------ LoRA-GA


def aligned(rows: torch.Tensor, others: np.ndarray) -> np.ndarray:
    """Flip the signs of `other`'s singular vectors to match the first ones."""
    return others * np.sign((rows.detach().double().numpy() * others).sum(1, keepdims=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_ga_uses_the_gradients_leading_directions(name):
    model, gradients = adapted(name, "lora-ga"), weight_gradients(name, batches_for(name))
    for key, layer in lora_layers(model).items():
        u, s, vh = np.linalg.svd(gradients[key], full_matrices=False)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        c = layer.get_base_layer().weight.shape[0] ** 0.25 / 4  # PEFT's γ = 16
        np.testing.assert_allclose(a.detach(), aligned(a, vh[:4]), rtol=0, atol=2e-2)
        columns = aligned(b.T, c * s[4:8, None] * u[:, 4:8].T)
        np.testing.assert_allclose(b.T.detach(), columns, rtol=0, atol=2e-2 * c * s[4])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("chosen", [None, LoraGAConfig(direction="ArBr", scale="unit")], ids=["default", "ArBr"])
def test_lora_ga_factors_equal_peft(name, chosen, monkeypatch):
    def exact(matrix, q, niter):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :q], s[:q], vh[:q].T

    # Replaces the randomized SVD, whose random numbers would differ.
    monkeypatch.setattr(torch, "svd_lowrank", exact)
    ours, batches = adapted(name, "lora-ga", lora_ga_config=chosen), batches_for(name)
    settings = {**ADAPTER, "target_modules": list(lora_layers(ours)), "fan_in_fan_out": name == "gpt2"}
    config = LoraConfig(init_lora_weights="lora_ga", lora_ga_config=chosen or LoraGAConfig(), **settings)
    base = base_model(name)
    preprocess_loraga(base, config, lambda: [base(**batch).loss.backward() for batch in batches])
    theirs = get_peft_model(base, config)
    for layer, other in zip(lora_layers(ours).values(), lora_layers(theirs).values(), strict=True):
        for a, b in (
            (layer.lora_A["default"].weight, other.lora_A["default"].weight),
            (layer.lora_B["default"].weight.T, other.lora_B["default"].weight.T),
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * b.abs().max().item())
        torch.testing.assert_close(layer.get_base_layer().weight, other.get_base_layer().weight, rtol=0, atol=1e-6)


def first_step(name: str, method: str, batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the change of each weight `(out, in)` by one small gradient descent step on the task loss."""
    model = adapted(name, method, batches=[batch])
    before = {key: layer.get_delta_weight("default").detach() for key, layer in lora_layers(model).items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    loss = model.get_base_model()(**batch).loss
    with torch.no_grad():
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter -= 0.1 * gradient
    return {
        key: (layer.get_delta_weight("default").detach() - before[key]).double().numpy()
        for key, layer in lora_layers(model).items()
    }


def test_lora_ga_first_step_follows_the_full_gradient():
    """As close to −G as rank r allows, cosine ‖S[:r]‖/‖S‖ (Eckart and Young); LoRA's random A is far from it."""
    batch = inputs_for("llama")
    gradients = weight_gradients("llama", [batch])
    cosines = {}
    for method in ("lora", "lora-ga"):
        steps = first_step("llama", method, batch)
        cosines[method] = {
            key: -(steps[key] * g).sum() / np.linalg.norm(steps[key]) / np.linalg.norm(g)
            for key, g in gradients.items()
        }
    for key, g in gradients.items():
        s = np.linalg.svd(g, compute_uv=False)
        best = np.linalg.norm(s[:4]) / np.linalg.norm(s)
        assert cosines["lora-ga"][key] > 0.99 * best, key
        assert cosines["lora"][key] < 0.7 * best, key


def test_lora_ga_with_a_weight_narrower_than_2r_raises():
    with pytest.raises(BALoraError, match=r"r: lora-ga needs 2r .*k_proj has 16; use at most 8 there"):
        adapted("llama", "lora-ga", r=9)


def test_lora_ga_settings_are_saved(tmp_path):
    model = adapted("llama", "lora-ga", lora_ga_config=LoraGAConfig(scale="unit"))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_ga_config"]["scale"] == "unit"
    assert BALoraModel.from_pretrained(make("llama"), tmp_path).balora_config.lora_ga_config.scale == "unit"


# ------------------------------------------------------------------ CorDA


def naive_covariances(name: str, layers: list[str], batches: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    """Compute the unmodified model's covariances row by row and token by token, without padding."""
    model = make(name)
    modules, inputs = dict(model.named_modules()), {}
    for key in layers:
        modules[key].register_forward_hook(lambda m, x, y, key=key: inputs.update({key: x[0].detach()}))
    found = {key: [] for key in layers}
    for batch in batches:
        for i in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][i].sum())
            model(input_ids=batch["input_ids"][i : i + 1, :length])
            for key in layers:
                tokens = inputs[key].reshape(-1, inputs[key].shape[-1]).double().numpy()
                tokens = tokens / abs(tokens.max())
                found[key].append(sum(np.outer(token, token) for token in tokens))
    return {key: np.mean(each, axis=0) for key, each in found.items()}


@pytest.mark.parametrize("corda_method", ["ipm", "kpm"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_corda_uses_components_of_weight_times_covariance(name, corda_method):
    model, batches = adapted(name, "corda", corda_method=corda_method), batches_for(name)
    layers, pretrained = lora_layers(model), dict(make(name).named_modules())
    for key, c in naive_covariances(name, list(layers), batches).items():
        weight = pretrained[key].weight.detach().double().numpy()
        weight = weight.T if layers[key].fan_in_fan_out else weight
        damped = c + 0.01 * np.trace(c) / len(c) * np.eye(len(c))
        u, s, vh = np.linalg.svd(weight @ damped, full_matrices=False)
        part = slice(4) if corda_method == "ipm" else slice(-4, None)
        adapted_part = (u[:, part] * s[part]) @ vh[part] @ np.linalg.inv(damped)
        delta = layers[key].get_delta_weight("default").detach()
        delta = delta.T if layers[key].fan_in_fan_out else delta
        np.testing.assert_allclose(delta, adapted_part, rtol=0, atol=2e-3 * np.abs(adapted_part).max())


@pytest.fixture
def peft_corda(monkeypatch):
    """Import PEFT's CorDA module, which needs a decorator of a package that PEFT does not require."""
    if importlib.util.find_spec("attr") is None:
        monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    return importlib.import_module("peft.tuners.lora.corda")


@pytest.mark.parametrize("corda_method", ["ipm", "kpm"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_corda_factors_equal_peft(name, corda_method, peft_corda):
    ours, batches = adapted(name, "corda", corda_method=corda_method), batches_for(name)
    settings = {**ADAPTER, "target_modules": list(lora_layers(ours)), "fan_in_fan_out": name == "gpt2"}
    config = LoraConfig(init_lora_weights="corda", corda_config=CordaConfig(corda_method=corda_method), **settings)
    base = make(name)

    def run() -> None:
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                base(input_ids=ids[None, mask.bool()])

    peft_corda.preprocess_corda(base, config, run_model=run)
    theirs = get_peft_model(base, config)
    for layer, other in zip(lora_layers(ours).values(), lora_layers(theirs).values(), strict=True):
        for a, b in (
            (layer.lora_A["default"].weight, other.lora_A["default"].weight),
            (layer.lora_B["default"].weight.T, other.lora_B["default"].weight.T),
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-3 * b.abs().max().item())
        torch.testing.assert_close(layer.get_base_layer().weight, other.get_base_layer().weight, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(out=st.integers(1, 9), inner=st.integers(1, 9), share=st.integers(0, 9), seed=st.integers(0, 1000))
def test_ipm_and_kpm_components_sum_to_the_weight(out, inner, share, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, inner, generator=generator, dtype=torch.float64)
    x = torch.randn(40, inner, generator=generator, dtype=torch.float64)
    rank = min(out, inner)
    first = 1 + share % rank
    (a, b), (rest_a, rest_b) = (
        corda_factors(weight, x.T @ x, r, scaling=2.0, corda_method=corda_method)
        for r, corda_method in ((first, "ipm"), (max(rank - first, 1), "kpm"))
    )
    assert (a.shape, b.shape) == ((first, inner), (out, first))
    whole = 2 * b @ a + (2 * rest_b @ rest_a if first < rank else 0)
    # The rows of a wide weight need not span the input space, so W·C·C⁻¹ equals W only up to rounding.
    torch.testing.assert_close(whole, weight, rtol=0, atol=1e-8)


def test_isotropic_inputs_give_pissa_and_milora_components():
    weight = torch.randn(7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for corda_method, plain in (("ipm", pissa_factors), ("kpm", milora_factors)):
        a, b = corda_factors(weight, torch.eye(9), 3, corda_method=corda_method)
        expected_a, expected_b = plain(weight, 3)
        torch.testing.assert_close(b @ a, expected_b @ expected_a)


def test_corda_with_rank_above_the_weights_takes_all_components():
    inputs = without_labels(inputs_for("llama"))
    model = adapted("llama", "corda", r=48, lora_alpha=48).eval()
    torch.testing.assert_close(model(**inputs).logits, make("llama")(**inputs).logits, **EXACT)


def test_padding_and_batching_do_not_change_corda():
    rows = inputs_for("llama")
    model = get_balora_model(make("llama"), BALoraConfig(method="lora+reg", **ADAPTER))
    together = input_covariances(model, [without_labels(rows)])
    left = {key: torch.roll(value, 4, dims=1) if key != "labels" else value for key, value in rows.items()}
    apart = [{"input_ids": rows["input_ids"][i : i + 1]} for i in range(1, 4)]
    first = {key: value[:1] for key, value in left.items()}  # its padding is on the left now
    for key, covariance in input_covariances(model, [first, *apart]).items():
        torch.testing.assert_close(covariance, together[key], rtol=1e-4, atol=1e-5)


def test_unknown_corda_method_raises():
    with pytest.raises(BALoraError, match=r"corda_method: unknown 'ipa'; use ipm or kpm"):
        BALoraConfig(method="corda+reg", corda_method="ipa")


# ------------------------------------------------------------------ LoRA-Null


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_lora_null_takes_the_weight_on_the_directions_that_inputs_use_least(name):
    model, batches = adapted(name, "lora-null"), batches_for(name)
    layers, pretrained = lora_layers(model), dict(make(name).named_modules())
    # Compared with naive ones above. Of other rounding, the smallest eigenvalues' vectors would be others.
    plain = get_balora_model(base_model(name), BALoraConfig(method="lora", **ADAPTER))
    for key, c in input_covariances(plain, batches).items():
        c = c.double().numpy()
        weight = pretrained[key].weight.detach().double().numpy()
        weight = weight.T if layers[key].fan_in_fan_out else weight
        null = np.linalg.eigh(c)[1][:, :4]  # (in, r)
        adapted_part = weight @ null @ null.T
        delta = layers[key].get_delta_weight("default").detach()
        delta = delta.T if layers[key].fan_in_fan_out else delta
        np.testing.assert_allclose(delta, adapted_part, rtol=0, atol=2e-3 * np.abs(adapted_part).max())


@settings(deadline=None, max_examples=40)
@given(out=st.integers(1, 9), inner=st.integers(2, 9), used=st.integers(1, 8), seed=st.integers(0, 1000))
def test_lora_null_adds_nothing_to_inputs_outside_the_null_space(out, inner, used, seed):
    """Inputs in a subspace of dimension `used`, and a rank that the rest has room for."""
    generator = torch.Generator().manual_seed(seed)
    used = min(used, inner - 1)
    weight = torch.randn(out, inner, generator=generator, dtype=torch.float64)
    x = torch.randn(40, used, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(used, inner, generator=generator, dtype=torch.float64)
    a, b = null_factors(weight, x.T @ x, inner - used, scaling=2.0)
    assert a.shape == (min(inner - used, out), inner)
    assert (x @ a.T).abs().max() < 1e-6 * x.abs().max()
    if out >= inner - used:
        elsewhere = torch.eye(inner) - torch.linalg.pinv(x) @ x
        torch.testing.assert_close(2 * b @ a, weight @ elsewhere, rtol=0, atol=1e-6)


def test_only_v2_freezes_a_and_keeps_the_outputs_on_inputs_that_it_started_from():
    """Rank 4 of 32 input directions with only two sequences of 12 tokens: the inputs leave a null space."""
    batches = [inputs_for("llama", rows=2)]
    for method in ("lora-null", "lora-null-v2"):
        model = adapted("llama", method, batches=batches, target_modules=["q_proj"], layers_to_transform=[0])
        layer = next(iter(lora_layers(model).values()))
        start = layer.lora_A["default"].weight.detach().clone()
        inputs = without_labels(batches[0])
        before = model.eval()(**inputs).logits
        train_steps(model, inputs_for("llama", seed=9), steps=5)
        frozen = torch.equal(layer.lora_A["default"].weight, start)
        assert frozen == (not layer.lora_A["default"].weight.requires_grad) == (method == "lora-null-v2")
        kept = inputs["attention_mask"].bool()
        moved = (model(**inputs).logits - before)[kept].abs().max()
        elsewhere = model(**without_labels(inputs_for("llama", seed=9)))
        untouched = make("llama")(**without_labels(inputs_for("llama", seed=9)))
        assert (elsewhere.logits - untouched.logits).abs().max() > 1e-4
        assert (moved < 1e-5) == frozen
