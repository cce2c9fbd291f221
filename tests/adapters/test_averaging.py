"""Averages with the pretrained weights, W₀ + α·(W − W₀), matrix by matrix, for every kind of adapter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, TaskType
from tiny_models import inputs_for, make, train_steps, trained, without_labels

from balora import BALoraConfig, BALoraError, BALoraModel
from balora.adapters.averaging import average_with_base, check_averaging

METHODS = ["lora", "rslora", "pissa", "olora", "milora", "lora-fa"]
pytestmark = pytest.mark.filterwarnings("ignore:balora")


def averaged(name: str, folder: object, alpha: float) -> torch.nn.Module:
    """Compute the average by definition: every weight in float64, from the adapter merged by stock PEFT."""
    model, pretrained = PeftModel.from_pretrained(make(name), folder).merge_and_unload(), make(name).state_dict()
    mixed = {
        key: (1 - alpha) * pretrained[key].double() + alpha * value.double()
        for key, value in model.state_dict().items()
    }
    model.load_state_dict({key: value.to(pretrained[key]) for key, value in mixed.items()})
    return model.eval()


def check(name: str, method: str, alpha: float, tmp_path, **own) -> BALoraModel:
    inputs = without_labels(inputs_for(name))
    model = trained(name, method, **own)
    model.save_pretrained(tmp_path / "trained")
    expected = averaged(name, tmp_path / "trained", alpha)
    moved = max((value - make(name).state_dict()[key]).abs().max() for key, value in expected.state_dict().items())
    assert moved > 1e-4
    average_with_base(model, alpha)
    model.save_pretrained(tmp_path / "averaged")
    stock = PeftModel.from_pretrained(make(name), tmp_path / "averaged").merge_and_unload()
    for key, value in expected.state_dict().items():
        assert (stock.state_dict()[key] - value).abs().max() < 1e-6, key
    torch.testing.assert_close(model(**inputs).logits, expected(**inputs).logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, make(name)(**inputs).logits, rtol=0, atol=1e-5)
    return model


@pytest.mark.parametrize(
    ("name", "method"), [*(("llama", method) for method in METHODS), ("gpt2", "pissa"), ("t5-untied", "pissa")]
)
def test_stock_peft_loads_the_average(name, method, tmp_path):
    check(name, method, 0.3, tmp_path)


@pytest.mark.parametrize("method", ["lora", "pissa"])
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])  # stored as (E, out, in), and as (E, in, out)
def test_each_expert_is_averaged(name, method, tmp_path):
    check(name, method, 0.6, tmp_path, target_parameters=["experts.gate_up_proj", "experts.down_proj"])


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 2}}),
        ("llama", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
        ("gpt2", {"lora_bias": True, "target_modules": ["c_attn"]}),
    ],
    ids=str,
)
def test_other_peft_settings(name, own, tmp_path):
    check(name, "pissa", 0.5, tmp_path, **own)


@settings(max_examples=8, deadline=None)
@given(alpha=st.floats(0, 1), method=st.sampled_from(["lora", "pissa"]))
def test_outputs_of_a_linear_layer_are_averaged(alpha, method):
    model = trained("llama", method)
    layer = next(m for name, m in model.get_base_model().named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    x = torch.randn(3, layer.in_features)
    whole, pretrained = layer(x), make("llama").model.layers[0].self_attn.q_proj(x)
    average_with_base(model, alpha)
    torch.testing.assert_close(layer(x), torch.lerp(pretrained, whole, alpha), rtol=0, atol=2e-6)


def test_average_is_trainable_and_loads_with_balora(tmp_path):
    model = check("llama", "pissa", 0.5, tmp_path)
    inputs = without_labels(inputs_for("llama"))
    assert (model.balora_config.method, model.balora_config.r, model.peft_config["default"].r) == ("lora+reg", 8, 8)
    reloaded = BALoraModel.from_pretrained(make("llama"), tmp_path / "averaged", is_trainable=True)
    torch.testing.assert_close(reloaded.eval()(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)
    before = model(**inputs).logits
    train_steps(model, inputs_for("llama"))
    assert (model(**inputs).logits - before).abs().max() > 1e-3
    average_with_base(model, 0.0)
    torch.testing.assert_close(model(**inputs).logits, make("llama")(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"method": "dora"}, "DoRA scales whole rows"),
        ({"method": "pissa", "use_dora": True}, "DoRA scales whole rows"),
        ({"method": "selora", "sentence_dim": 4}, "differs between rows"),
        ({"method": "lora", "task_names": ["a", "b"]}, "differs between rows"),
        ({"method": "lora", "task_type": TaskType.SEQ_CLS}, "a classifier's head is initialized at random"),
        (
            {"method": "lora", "trainable_token_indices": [1]},
            "pretrained vectors of the trained tokens",
        ),
    ],
)
def test_methods_without_an_average_raise(own, message):
    with pytest.raises(BALoraError, match=f"wise_ft: method .* {message}"):
        check_averaging(BALoraConfig(**own))


def test_alpha_out_of_range_and_merged_adapter_raise():
    model = trained("llama", "lora")
    with pytest.raises(BALoraError, match=r"wise_ft: 1\.5 is out of range"):
        average_with_base(model, 1.5)
    model.merge_adapter()
    with pytest.raises(BALoraError, match="call unmerge_adapter"):
        average_with_base(model, 0.5)
