"""The fused LoRA layer: outputs and gradients equal PEFT's, and PEFT's forward is used in all other cases."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from tiny_models import inputs_for, make, without_labels
from torch import nn

from balora import BALoraConfig, get_balora_model
from balora.adapters import fused_linear
from balora.adapters.fused_linear import FusedLinear, use_fused_linear


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 10, bias=bias)

    def forward(self, x):
        return self.inner(x)


def layers(bias: bool = True, dtype: torch.dtype = torch.float64, **settings) -> tuple[nn.Module, nn.Module]:
    """Build PEFT's model and the fused one with equal weights."""
    models = []
    for number in range(2):
        torch.manual_seed(0)
        config = LoraConfig(r=3, lora_alpha=5, target_modules=["inner"], init_lora_weights=False, **settings)
        model = get_peft_model(Block(bias), config).to(dtype)
        if number:
            use_fused_linear(model)
        models.append(model)
    return tuple(models)


def assert_same(stock: nn.Module, ours: nn.Module, x: torch.Tensor) -> None:
    results = []
    for model in (stock, ours):
        torch.manual_seed(1)
        model.zero_grad()
        x.grad = None
        y = model(x)
        (y.double() * torch.arange(y.shape[-1])).sum().backward()
        results.append(
            [y, *([] if x.grad is None else [x.grad]), *(p.grad for p in model.parameters() if p.requires_grad)]
        )
    for ours_one, stock_one in zip(*results, strict=True):
        torch.testing.assert_close(ours_one, stock_one)


@pytest.fixture
def products(monkeypatch) -> list:
    """Record calls of the fused product."""
    ran, real = [], fused_linear._LoraProduct.apply
    monkeypatch.setattr(fused_linear._LoraProduct, "apply", lambda *arguments: (ran.append(1), real(*arguments))[1])
    return ran


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
@pytest.mark.parametrize("wanted", [True, False])
def test_outputs_and_gradients_equal_peft(bias, shape, wanted, products):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=wanted)
    assert_same(*layers(bias), x)
    assert products


def test_gradient_passes_gradcheck():
    _, ours = layers()
    layer = ours.base_model.model.inner
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    arguments = (layer.base_layer.weight, layer.base_layer.bias)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.autograd.gradcheck(
        lambda x, a, b: fused_linear._LoraProduct.apply(x, *arguments, a, b, 1.7), (x, a, b)
    )


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"lora_dropout": 0.5}, torch.float64),
        ({"use_dora": True}, torch.float64),
        ({"lora_bias": True}, torch.float64),
        ({}, torch.bfloat16),
    ],
)
def test_other_settings_use_pefts_forward(settings, dtype, products):
    stock, ours = layers(dtype=torch.float64, **settings)
    if dtype == torch.bfloat16:
        for model in (stock, ours):
            model.base_model.model.inner.base_layer.to(dtype)
    assert_same(stock.train(), ours.train(), torch.randn(4, 6, dtype=dtype, requires_grad=True))
    assert not products


def test_autocast_merged_disabled_and_hooked_layers_use_pefts_forward(products):
    stock, ours = layers(dtype=torch.float32)
    x = torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stock(x), ours(x))
    with stock.disable_adapter(), ours.disable_adapter():
        assert torch.equal(stock(x), ours(x))
    heard = []
    handle = ours.base_model.model.inner.base_layer.register_forward_hook(lambda *_: heard.append(1))
    ours(x)
    handle.remove()
    assert heard
    for model in (stock, ours):
        model.merge_adapter()
    torch.testing.assert_close(stock(x), ours(x))
    assert not products


def test_dropout_is_off_in_evaluation_mode(products):
    stock, ours = layers(lora_dropout=0.5)
    assert_same(stock.eval(), ours.eval(), torch.randn(4, 6, dtype=torch.float64))
    assert products


def test_only_plain_layers_are_replaced():
    model = get_balora_model(make("gpt2"), BALoraConfig(r=4, target_modules="all-linear"))
    assert not any(isinstance(module, FusedLinear) for module in model.modules())  # GPT-2's are Conv1D
    model = get_balora_model(make("llama"), BALoraConfig(r=4, target_modules="all-linear"))
    adapted = [module for module in model.modules() if isinstance(module, Linear)]
    assert adapted
    assert all(isinstance(module, FusedLinear) for module in adapted)
    assert isinstance(model.base_model.merge_and_unload().model.layers[0].mlp.up_proj, nn.Linear)


def test_recomputation_under_checkpointing_is_equal():
    inputs = without_labels(inputs_for("llama"))
    gradients = []
    for checkpointing in (False, True):
        model = get_balora_model(make("llama"), BALoraConfig(r=4, target_modules="all-linear")).train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable()
            model.enable_input_require_grads()
        model(**inputs).logits.sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_output_can_be_changed_in_place():
    stock, ours = layers()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    gradients = []
    for model in (stock, ours):
        model.zero_grad()
        y = model(x).clamp_(min=-1, max=1)
        (y * torch.arange(10)).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_derivative_is_refused():
    _, ours = layers()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
