"""Modules trained in full on a base in half precision: trained in float32, saved and merged as on any base."""

import warnings

import pytest
import torch
from peft import PeftModel
from tiny_models import inputs_for, make, train_steps, without_labels

from balora import BALoraConfig, BALoraModel, get_balora_model
from balora.adapters.trained_in_full import warn_about_half_precision

pytestmark = pytest.mark.filterwarnings("ignore:balora")
CASES = {
    "head": ("llama", {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}),
    "head of logits": (
        "llama",
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"], "fused_lm_head": False},
    ),
    "norms and embeddings": ("llama", {"modules_to_save": ["norm", "embed_tokens"], "target_modules": ["q_proj"]}),
    "classifier": ("bert", {"target_modules": ["query"]}),
    "large classifier": ("roberta", {"target_modules": ["query"]}),
    "residual": ("roberta", {"target_modules": ["query"], "method": "pissa"}),
    "text to text": ("t5-untied", {"modules_to_save": ["lm_head"], "target_modules": ["q"]}),
}


def build(name: str, settings: dict, dtype: torch.dtype = torch.bfloat16) -> BALoraModel:
    return get_balora_model(make(name).to(dtype), BALoraConfig(**{"method": "lora+reg", "r": 4, **settings}))


def in_full(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if p.requires_grad and ".modules_to_save." in name
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_every_weight_with_a_gradient_moves_in_small_steps(case, dtype):
    name, settings = CASES[case]
    model = build(name, settings, dtype)
    start = in_full(model)
    assert start
    train_steps(model, inputs_for(name), steps=3, lr=1e-5)
    for key, value in in_full(model).items():
        gradient = dict(model.named_parameters())[key]
        assert gradient.dtype == torch.float32
        moved = (value != start[key]).float().mean()
        assert moved > (0.3 if "embed" in key else 0.9), (
            key,
            moved,
        )  # only the batch's tokens have embeddings to move


@pytest.mark.parametrize("case", CASES)
def test_the_start_and_the_teacher_are_the_base(case):
    name, settings = CASES[case]
    model, inputs = build(name, settings).eval(), without_labels(inputs_for(name))
    with torch.no_grad():
        want = make(name).to(torch.bfloat16)(**inputs).logits
        assert model(**inputs).logits.dtype == torch.bfloat16
        torch.testing.assert_close(model(**inputs).logits, want, atol=0.02, rtol=0.02)
        torch.testing.assert_close(model.teacher_forward(**inputs).logits, want, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("case", CASES)
def test_it_is_saved_whole_and_merged_in_the_bases_precision(case, tmp_path):
    name, settings = CASES[case]
    model, inputs = build(name, settings), without_labels(inputs_for(name))
    train_steps(model, inputs_for(name))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        want = model(**inputs).logits
        loaded = BALoraModel.from_pretrained(make(name).to(torch.bfloat16), tmp_path, is_trainable=True).eval()
        torch.testing.assert_close(loaded(**inputs).logits, want)
        for key, value in in_full(model).items():
            assert torch.equal(in_full(loaded)[key], value)
        stock = PeftModel.from_pretrained(make(name).to(torch.bfloat16), tmp_path).eval()
        torch.testing.assert_close(stock(**inputs).logits, want, atol=0.05, rtol=0.05)
        merged = model.merge_and_unload()
        assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(merged(**inputs).logits, want, atol=0.05, rtol=0.05)


def test_weights_trained_in_half_precision_are_warned_of():
    with pytest.warns(UserWarning, match=r"are trained in torch\.bfloat16"):
        warn_about_half_precision(make("llama").to(torch.bfloat16))
    fine = [build(*CASES["head"]), make("llama")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in fine:
            warn_about_half_precision(model)
