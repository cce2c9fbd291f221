"""Target modules: what `all-linear` adapts in models with parts that an adapter cannot or should not change."""

import pytest
import torch
import transformers as hf
from tiny_models import GROUPED, SMALL, inputs_for, make, with_reg, without_labels

from balora import BALoraConfig, BALoraError, get_balora_model

MAMBA = {"hidden_size": 32, "vocab_size": 97, "num_hidden_layers": 2, "state_size": 4, "eos_token_id": 1}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CHOSEN = {
    "olmo": lambda: hf.OlmoForCausalLM(hf.OlmoConfig(**SMALL, clip_qkv=1.0, eos_token_id=1)),
    "mamba": lambda: hf.MambaForCausalLM(hf.MambaConfig(**MAMBA)),
    "mamba2": lambda: hf.Mamba2ForCausalLM(hf.Mamba2Config(**MAMBA, num_heads=8, head_dim=8, n_groups=1)),
    "distilbert": lambda: hf.DistilBertForSequenceClassification(
        hf.DistilBertConfig(vocab_size=97, dim=32, hidden_dim=64, n_layers=2, n_heads=4, num_labels=3)
    ),
    "gemma3": lambda: hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(
            text_config={**GROUPED, "head_dim": 8},
            vision_config={**VISION, "image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
        )
    ),
}


def build(name: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return CHOSEN[name]().eval()


def batch_for(name: str) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 90, (4, 12), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(4) % 3 if name == "distilbert" else ids
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.filterwarnings("ignore:balora")
@pytest.mark.parametrize("method", ["lora", "pissa"])
@pytest.mark.parametrize("name", list(CHOSEN))
def test_all_linear_starts_at_the_base_and_trains_every_layer(name, method):
    batch = batch_for(name)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        want = build(name)(**inputs).logits
    model = get_balora_model(
        build(name), BALoraConfig(method=with_reg(method), r=4, target_modules="all-linear")
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, want, atol=5e-6, rtol=0)
    model.train()(**batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "left_out"), [("mamba", "mixer.out_proj"), ("gemma3", "self_attn.out_proj")])
def test_all_linear_warns_of_layers_that_it_leaves_out(name, left_out):
    with pytest.warns(UserWarning, match=rf"all-linear leaves out .*{left_out}"):
        get_balora_model(build(name), BALoraConfig(r=4, target_modules="all-linear"))


@pytest.mark.filterwarnings("ignore:balora")
def test_all_linear_leaves_the_vision_tower_as_it_is():
    model = get_balora_model(build("gemma3"), BALoraConfig(method="lora+reg", r=4, target_modules="all-linear"))
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert adapted
    assert all("language_model" in name for name in adapted)


@pytest.mark.filterwarnings("ignore:balora")
@pytest.mark.parametrize("given", ["(.*down_proj)", ["down_proj"]])
def test_excluded_modules_of_the_user_are_kept(given):
    settings = {"method": "lora", "r": 4, "target_modules": "all-linear", "exclude_modules": given}
    model = get_balora_model(build("gemma3"), BALoraConfig(**settings))
    adapted = [name for name, _ in model.named_parameters() if "lora_A" in name]
    assert adapted
    assert not any("down_proj" in name or "vision" in name for name in adapted)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("mamba", "dt_proj", "dt_proj is never called"),
        ("mamba", "out_proj", "incompatible with Mamba"),
        ("distilbert", "pre_classifier", "trained in full"),
    ],
)
def test_a_layer_that_cannot_be_adapted_is_refused(name, target, message):
    with pytest.raises(BALoraError, match=message):
        get_balora_model(build(name), BALoraConfig(method="lora+reg", r=4, target_modules=[target]))


@pytest.mark.parametrize(
    ("name", "target"),
    [("llama-tied", "lm_head"), ("llama-tied", "embed_tokens"), ("bart", "shared"), ("t5", "lm_head")],
)
@pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
def test_a_weight_shared_with_the_embeddings_is_refused_and_the_base_is_left_as_it_was(name, target, method):
    base, inputs = make(name), without_labels(inputs_for(name))
    query = "q" if name == "t5" else "q_proj"
    with pytest.raises(BALoraError, match=f"{target} shares its weight"):
        get_balora_model(base, BALoraConfig(method=with_reg(method), r=4, target_modules=[target, query]))
    model = get_balora_model(base, BALoraConfig(method=with_reg(method), r=4, target_modules=[query])).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, make(name)(**inputs).logits, atol=1e-5, rtol=1e-4)
