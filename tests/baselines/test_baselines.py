"""Baselines: initialization, trained parameters, saving and errors, for every architecture."""

import copy
from dataclasses import fields

import pytest
import torch
from baseline_models import BASELINE_MODELS, WITHOUT_BIAS, batch_for, make_base
from safetensors.torch import load_model

from balora import BALoraError
from balora.baselines import BASELINES, make_baseline
from balora.baselines.bottleneck import BottleneckAdapter
from balora.baselines.own_parameters import task_heads
from balora.recipe import Recipe
from balora.study.student import check_fit
from balora.utils.modules import trainable_parameters

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`")
#: Baselines that PEFT does not build.
WITHOUT_PEFT = ("full", "bitfit", "houlsby", "pfeiffer")
PAIRS = [
    (name, method)
    for name in BASELINE_MODELS
    for method in WITHOUT_PEFT
    if method != "bitfit" or name not in WITHOUT_BIAS
]
#: Wide enough that no adapter of a tiny model has only dead ReLUs, which would give `up` no gradient.
WIDTH = 16
every_baseline = pytest.mark.parametrize(("name", "method"), PAIRS)


def baseline(name: str, method: str, **settings) -> torch.nn.Module:
    width = {"bottleneck_size": WIDTH} if "bottleneck_size" in BASELINES[method].settings else {}
    return make_baseline(make_base(name), method, **width, **settings)


def steps(model: torch.nn.Module, number: int = 1) -> None:
    """Train with weight decay, which moves any parameter that the optimizer has, even without a gradient."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(number):
        model(**batch_for(model)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def is_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "score")


@every_baseline
def test_initialization_keeps_the_pretrained_function_to_the_bit(name, method):
    base = make_base(name)
    inputs = batch_for(base)
    # Without gradients: for T5, requires_grad of the position bias selects torch's attention kernel (last bit).
    with torch.no_grad():
        assert torch.equal(baseline(name, method)(**inputs).logits, base(**inputs).logits)


@every_baseline
def test_only_what_the_method_trains_changes(name, method):
    model = baseline(name, method)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected = {
        "full": lambda key: True,
        "bitfit": lambda key: key.endswith("bias") or is_head(key),
        "houlsby": lambda key: ".bottleneck." in key or is_head(key),
        "pfeiffer": lambda key: ".bottleneck." in key or is_head(key),
    }[method]
    parameters = {key for key, _ in model.named_parameters()}
    steps(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed & parameters == {key for key in parameters if expected(key)}
    assert all(expected(key) for key in changed)


@every_baseline
def test_saved_weights_load_into_a_fresh_baseline(name, method, tmp_path):
    model = baseline(name, method)
    steps(model, 2)
    inputs = batch_for(model)
    expected = model(**inputs).logits
    assert (expected - make_base(name)(**inputs).logits).abs().max() > 1e-4, "nothing was trained"
    model.save_pretrained(tmp_path)
    fresh = baseline(name, method)
    load_model(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh(**inputs).logits, expected)
    fresh = baseline(name, method)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(**inputs).logits, expected)


@every_baseline
def test_checkpointed_layers_give_the_same_gradients(name, method):
    model = baseline(name, method)
    steps(model)  # away from the zero initialization, where half of an adapter has no gradient
    ran, calls, gradients = [], [], []
    for module in model.modules():
        if isinstance(module, BottleneckAdapter):
            # A pre-hook: the recomputation stops inside the last adapter, at the last saved tensor.
            module.register_forward_pre_hook(lambda *_: ran.append(1))
    for checkpointing in (False, True):
        model.zero_grad()
        ran.clear()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()(**batch_for(model)).loss.backward()
        calls.append(len(ran))
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    assert calls[1] == 2 * calls[0], "each adapter is computed again"
    assert bool(calls[0]) == (method in ("houlsby", "pfeiffer"))
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@pytest.mark.parametrize("method", WITHOUT_PEFT)
def test_a_pretrained_state_dict_still_loads(method):
    other = copy.deepcopy(make_base("bert"))
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    model = baseline("bert", method)
    missing, unexpected = model.load_state_dict(other.state_dict(), strict=False)
    assert not unexpected
    assert all(".bottleneck." in key for key in missing)
    inputs = batch_for(other)
    assert torch.equal(model(**inputs).logits, other(**inputs).logits)


@pytest.mark.parametrize("name", sorted(WITHOUT_BIAS))
def test_bitfit_without_a_bias_is_refused(name):
    with pytest.raises(BALoraError, match=rf"bitfit trains biases and {type(make_base(name)).__name__} has none"):
        baseline(name, "bitfit")


@pytest.mark.parametrize("method", ["bitfit", "houlsby", "pfeiffer"])
def test_modules_to_save_train_beside_the_head(method):
    plain, model = baseline("distilbert", method), baseline("distilbert", method, modules_to_save=["pre_classifier"])
    added = {k for k, p in model.named_parameters() if p.requires_grad} - {
        k for k, p in plain.named_parameters() if p.requires_grad
    }
    already = {"pre_classifier.bias"} if method == "bitfit" else set()
    assert added == {"pre_classifier.weight", "pre_classifier.bias"} - already
    size = 32 * 32 + (0 if already else 32)
    assert trainable_parameters(model) == trainable_parameters(plain) + size


def test_a_language_model_has_no_head():
    assert task_heads(make_base("llama")) == []
    assert task_heads(make_base("t5")) == []
    assert task_heads(make_base("bert")) == ["classifier"]
    assert task_heads(make_base("mistral"), ["norm", "score"]) == ["score", "norm"]


def test_a_tied_weight_counts_once():
    model = baseline("gpt2", "full")
    assert trainable_parameters(model) == sum(p.numel() for p in model.transformer.parameters())


@pytest.mark.parametrize("method", WITHOUT_PEFT)
def test_a_module_to_save_that_matches_nothing_is_named(method):
    with pytest.raises(
        BALoraError, match=r"modules_to_save: 'clasifier' matches nothing; .*bert, dropout, classifier"
    ):
        baseline("bert", method, modules_to_save=["clasifier"])


def test_an_unknown_method_is_named():
    with pytest.raises(
        BALoraError,
        match=r"method: unknown 'adapter'; there are full, bitfit, houlsby, pfeiffer, adalora, prompt-tuning",
    ):
        make_baseline(make_base("bert"), "adapter")


def test_the_settings_of_every_baseline_are_settings_of_a_recipe():
    for method in BASELINES.values():
        assert set(method.settings) <= {field.name for field in fields(Recipe)}
    assert BASELINES["houlsby"].settings == ("bottleneck_size", "modules_to_save")


@pytest.mark.parametrize("method", BASELINES)
def test_every_baseline_is_checked_without_weights(method):
    with torch.device("meta"):
        model = make_base("bert")
    settings = {"model_name_or_path": "bert", "train_file": "rows.jsonl", "target_modules": ["query"]}
    check_fit(model, Recipe(method=method, **settings))
