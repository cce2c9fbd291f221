"""Saved adapters load and merge with stock PEFT, and resume exactly in balora."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, inputs_for, make, train_steps, trained, with_reg, without_labels

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model

METHODS = ["lora", "rslora", "dora", "pissa", "olora", "milora", "lora-fa"]
pytestmark = pytest.mark.filterwarnings("ignore:balora")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_stock_peft_loads_and_merges(name, method, tmp_path):
    inputs = without_labels(inputs_for(name))
    model = trained(name, method)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(stock.merge_and_unload()(**inputs).logits, expected, rtol=0, atol=1e-5)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json", ".md", ".safetensors"]


@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        {"use_dora": True},
        {"lora_bias": True, "target_modules": ["c_attn"]},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"modules_to_save": ["lm_head"], "target_modules": r".*\.layers\.\d+\.self_attn\.[qv]_proj"},
    ],
    ids=str,
)
def test_other_peft_settings_are_kept_by_stacking(settings, tmp_path):
    name = "gpt2" if "c_attn" in settings.get("target_modules", ()) else "llama"
    inputs = without_labels(inputs_for(name))
    model = trained(name, "pissa", **settings)
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, expected, rtol=0, atol=1e-5)
    reloaded = BALoraModel.from_pretrained(make(name), tmp_path)
    torch.testing.assert_close(reloaded(**inputs).logits, expected, rtol=0, atol=1e-6)
    assert (reloaded.teacher_forward(**inputs).logits - make(name)(**inputs).logits).abs().max() < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_reloaded_model_is_exact_and_trainable(method, tmp_path):
    model = trained("llama", method)
    model.save_pretrained(tmp_path)
    reloaded = BALoraModel.from_pretrained(make("llama"), tmp_path, is_trainable=True)
    assert reloaded.balora_config.settings() == model.balora_config.settings()
    assert (reloaded.balora_config.r, reloaded.balora_config.lora_alpha) == (4, 8)
    for (name, tensor), (other_name, other) in zip(
        model.state_dict().items(), reloaded.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert torch.equal(tensor, other), name
    for one in (model, reloaded):
        train_steps(one, inputs_for("llama", seed=2))
    inputs = without_labels(inputs_for("llama"))
    assert torch.equal(model(**inputs).logits, reloaded(**inputs).logits)


def test_adapter_is_frozen_unless_trainable(tmp_path):
    trained("llama", "pissa").save_pretrained(tmp_path)
    model = BALoraModel.from_pretrained(make("llama"), tmp_path)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_weights_load_into_a_model_of_another_initialization(tmp_path):
    inputs = without_labels(inputs_for("llama"))
    model = trained("llama", "pissa")
    model.save_pretrained(tmp_path)
    other = get_balora_model(
        make("llama"), BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear", pissa_niter=0, seed=9)
    ).eval()
    assert (other.teacher_forward(**inputs).logits - make("llama")(**inputs).logits).abs().max() < 1e-5
    other.load_adapter(tmp_path, "default", is_trainable=True)
    torch.testing.assert_close(other(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("targets", [["v_proj", "q_proj", "o_proj"], "all-linear"])
def test_target_modules_are_saved_sorted(targets, tmp_path):
    model = get_balora_model(make("llama"), BALoraConfig(method="lora+reg", r=2, target_modules=targets))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(model.peft_config["default"].target_modules)


def test_saved_files_have_no_keys_unknown_to_peft(tmp_path):
    trained("llama", "pissa", pissa_niter=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["init_lora_weights"] is True
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert "consistency_weight" not in config
    # Loaded by a fresh interpreter in which importing balora fails.
    code = (
        "import sys; sys.modules['balora'] = None\n"
        "import transformers as hf\n"
        "from peft import PeftModel\n"
        "c = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=97,\n"
        "         max_position_embeddings=64, num_key_value_heads=2)\n"
        f"PeftModel.from_pretrained(hf.LlamaForCausalLM(hf.LlamaConfig(**c)), {str(tmp_path)!r})\n"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True, timeout=120)


def test_model_card_has_method_settings_and_drift(tmp_path):
    model = trained("llama", "pissa", consistency_weight=0.5)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: peft" in card
    assert "| `method` | ba-lora |" in card
    assert "| `consistency_weight` | 0.5 |" in card
    assert "by `ba-lora`, regularized by consistency" in card
    assert "Not measured" in card
    model.drift = {"kl_to_base": 0.0123, "top1_agreement": 0.98}
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| `kl_to_base` | 0.0123 |" in card
    assert "Measured against the base model:" in card  # nothing is said about rows that are not known
    assert "Not measured" not in card


def test_folder_not_written_by_balora_raises(tmp_path):
    model = trained("llama", "lora")
    model.save_pretrained(tmp_path)
    (tmp_path / "balora_config.json").unlink()
    with pytest.raises(BALoraError, match=r"has no balora_config.json.*peft.PeftModel"):
        BALoraModel.from_pretrained(make("llama"), tmp_path)
    (tmp_path / "balora_config.json").write_text("{")
    with pytest.raises(BALoraError, match="is damaged"):
        BALoraModel.from_pretrained(make("llama"), tmp_path)


def test_adapter_of_another_shape_raises(tmp_path):
    import transformers as hf
    from tiny_models import GROUPED

    trained("llama", "pissa").save_pretrained(tmp_path)
    wider = hf.LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, "intermediate_size": 80}))
    with pytest.raises(BALoraError, match="does not fit LlamaForCausalLM"):
        BALoraModel.from_pretrained(wider, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "t5-untied"])
@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_an_adapted_head_reloads_with_its_pretrained_weight(method, name, dtype, tmp_path):
    settings = {"target_modules": ["lm_head", "q_proj" if name == "llama" else "q"]}
    model = trained_in(dtype, name, method, settings)
    model.save_pretrained(tmp_path)
    inputs = without_labels(inputs_for(name))
    exact = 1e-5 if dtype == torch.float32 else 0.05
    with torch.no_grad():
        want = model(**inputs).logits
        ours = BALoraModel.from_pretrained(make(name).to(dtype), tmp_path)
        torch.testing.assert_close(ours(**inputs).logits, want)
        torch.testing.assert_close(ours.teacher_forward(**inputs).logits, model.teacher_forward(**inputs).logits)
        stock = PeftModel.from_pretrained(make(name).to(dtype), tmp_path).eval()
        torch.testing.assert_close(stock(**inputs).logits, want, atol=exact, rtol=exact)
        merged = stock.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, want, atol=exact * 2, rtol=exact)
        resumed = get_balora_model(
            make(name).to(dtype), BALoraConfig(method=with_reg(method), r=4, lora_alpha=8, **settings)
        ).eval()
        resumed.load_adapter(tmp_path, "default")
        torch.testing.assert_close(resumed(**inputs).logits, want)


def trained_in(dtype: torch.dtype, name: str, method: str, settings: dict) -> BALoraModel:
    model = get_balora_model(
        make(name).to(dtype), BALoraConfig(method=with_reg(method), r=4, lora_alpha=8, **settings)
    )
    train_steps(model, inputs_for(name))
    return model


def test_an_adapter_saved_with_the_residual_of_its_head_still_loads(tmp_path):
    model = trained_in(torch.float32, "llama", "pissa", {"target_modules": ["lm_head", "q_proj"]})
    model.save_pretrained(tmp_path)
    path, key = tmp_path / "adapter_model.safetensors", "base_model.model.lm_head.base_layer.weight"
    state = load_file(path)
    save_file({**state, key: model.get_base_model().lm_head.base_layer.weight.detach().clone()}, path)
    settings = json.loads((tmp_path / "balora_config.json").read_text())
    assert settings.pop("base_weights") == "pretrained"
    (tmp_path / "balora_config.json").write_text(json.dumps(settings))
    inputs = without_labels(inputs_for("llama"))
    with torch.no_grad():
        loaded = BALoraModel.from_pretrained(make("llama"), tmp_path)
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)


def test_an_adapted_embedding_reloads_everywhere(tmp_path):
    model = trained("llama", "lora", target_modules=["embed_tokens", "q_proj"])
    model.save_pretrained(tmp_path)
    inputs = without_labels(inputs_for("llama"))
    with torch.no_grad():
        want = model(**inputs).logits
        torch.testing.assert_close(BALoraModel.from_pretrained(make("llama"), tmp_path)(**inputs).logits, want)
        stock = PeftModel.from_pretrained(make("llama"), tmp_path).eval()
        torch.testing.assert_close(stock.merge_and_unload()(**inputs).logits, want, atol=1e-5, rtol=1e-4)
