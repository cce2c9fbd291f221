"""The teacher equals the unmodified model for every architecture and method, before and after training."""

import warnings

import pytest
import torch
from tiny_models import CAUSAL, CLASSIFIERS, MODELS, inputs_for, make, train_steps, with_reg, without_labels

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.teacher import teacher_mode

METHODS = ["lora", "rslora", "dora", "pissa", "olora", "milora", "lora-fa"]
EXACT = {"rtol": 0, "atol": 1e-5}
pytestmark = pytest.mark.filterwarnings("ignore:balora")


def adapted(name: str, method: str, **settings) -> BALoraModel:
    config = BALoraConfig(method=with_reg(method), r=4, lora_alpha=8, target_modules="all-linear", **settings)
    return get_balora_model(make(name), config)


def untouched_logits(name: str, model: BALoraModel, inputs: dict) -> torch.Tensor:
    """Return the unmodified model's logits; for a classifier with the present head of `model`."""
    reference = make(name)
    live = {
        key.replace("modules_to_save.default.", ""): value
        for key, value in model.get_base_model().state_dict().items()
        if "modules_to_save.default" in key
    }
    assert bool(live) == (name in CLASSIFIERS)
    reference.load_state_dict(live, strict=False)
    return reference(**inputs).logits


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
def test_teacher_equals_unmodified_model(name, method, tmp_path):
    inputs = inputs_for(name)
    plain = without_labels(inputs)
    model = adapted(name, method)
    torch.testing.assert_close(model.teacher_forward(**plain).logits, make(name)(**plain).logits, **EXACT)

    train_steps(model, inputs)
    expected = untouched_logits(name, model, plain)
    trained = model(**plain).logits
    assert (trained - expected).abs().max() > 1e-3, "the student has not moved, so nothing was shown"
    torch.testing.assert_close(model.teacher_forward(**plain).logits, expected, **EXACT)
    torch.testing.assert_close(model.train().teacher_forward(**plain).logits, expected, **EXACT)

    model.save_pretrained(tmp_path)
    reloaded = BALoraModel.from_pretrained(make(name), tmp_path)
    torch.testing.assert_close(reloaded(**plain).logits, trained, rtol=0, atol=0)
    torch.testing.assert_close(reloaded.teacher_forward(**plain).logits, expected, **EXACT)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_teacher_is_within_rounding(method):
    inputs = without_labels(inputs_for("llama"))
    expected = make("llama").bfloat16()(**inputs).logits.float()
    config = BALoraConfig(method=with_reg(method), r=4, lora_alpha=4, target_modules="all-linear")
    model = get_balora_model(make("llama").bfloat16(), config)
    logits = model.teacher_forward(**inputs).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).norm() < 2**-7 * expected.norm()


@pytest.mark.parametrize("method", ["lora", "pissa", "olora"])
def test_gradient_checkpointing_gives_equal_gradients(method):
    inputs = inputs_for("llama")
    gradients = []
    for checkpointing in (False, True):
        model = adapted("llama", method, consistency_weight=1.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        train_steps(model, inputs, steps=2)
        model.train()
        model(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_teacher_pass_restores_all_state():
    model = adapted("llama", "pissa", lora_dropout=0.5).train()
    model.get_base_model().model.layers[0].eval()  # a module kept in evaluation mode
    before = {name: (m.training, getattr(m, "_active_adapter", None)) for name, m in model.named_modules()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    state = torch.get_rng_state()
    output = model.teacher_forward(**inputs_for("llama"))
    assert output.logits.grad_fn is None
    assert torch.equal(torch.get_rng_state(), state)
    assert before == {name: (m.training, getattr(m, "_active_adapter", None)) for name, m in model.named_modules()}
    assert trainable == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("teacher" not in name for name in trainable)


def test_student_is_restored_after_an_error_in_a_teacher_pass():
    model = adapted("llama", "pissa").train()
    with pytest.raises(KeyError), teacher_mode(model, live_head=False):
        raise KeyError
    assert model.training
    assert model(**inputs_for("llama")).loss.requires_grad


@pytest.mark.parametrize("name", ["llama", "bert"])
@pytest.mark.parametrize("method", METHODS)
def test_disable_adapter_and_unload_give_the_pretrained_model(name, method):
    inputs = without_labels(inputs_for(name))
    model = adapted(name, method)
    train_steps(model, inputs_for(name))
    expected = make(name)(**inputs).logits
    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
    assert (model(**inputs).logits - expected).abs().max() > 1e-3
    base = model.unload()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if name in CAUSAL:
            torch.testing.assert_close(base(**inputs).logits, expected, **EXACT)


def test_fully_trained_modules_are_disabled_in_a_language_model():
    model = adapted("llama", "pissa", modules_to_save=["lm_head"])
    inputs = inputs_for("llama")
    train_steps(model, inputs)
    expected = make("llama")(**without_labels(inputs)).logits
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, expected, **EXACT)


def test_teacher_of_a_merged_model_raises():
    model = adapted("llama", "lora")
    model.merge_adapter()
    with pytest.raises(BALoraError, match="merged"):
        model.teacher_forward(**inputs_for("llama"))
