"""Names of methods: what each means for a configuration, in Python as in recipes."""

import json
import warnings

import peft
import pytest
import torch
from tiny_models import inputs_for, make, train_steps

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.saving import SETTINGS_FILE
from balora.config import INITIALIZATIONS, METHODS, PUBLISHED, Method, find_method
from balora.config.methods import method_name
from balora.recipe import Recipe
from balora.study.method_config import balora_config

pytestmark = pytest.mark.filterwarnings("ignore:balora")
OUTPUTS = ("consistency_weight", "diversity_weight", "spectral_weight")


def test_a_name_and_its_parts_give_each_other():
    for name, method in METHODS.items():
        assert find_method(name) == method
        for suffixes in ("", "+anchors", "+anchors+swaps", "+swaps"):
            assert method_name(find_method(name + suffixes)) == name + suffixes
    assert find_method("pissa+reg") == find_method("ba-lora") == Method("pissa", regularized=True)
    assert find_method("qpissa+reg+anchors") == Method("pissa", regularized=True, four_bit=True, anchored=True)
    for other in ("full", "structural", "lora+swaps+anchors", "lora+anchors+reg", "+reg", ""):
        assert find_method(other) is None


@pytest.mark.parametrize("task_type", PUBLISHED)
@pytest.mark.parametrize("name", [*METHODS, "pissa+reg"])
def test_a_name_has_the_published_regularizers_or_none(name, task_type):
    extra = {"sentence_dim": 3} if "selora" in name else {}
    config = BALoraConfig(method=name, **extra)
    config.resolve(task_type)
    regularized = name.endswith("+reg") or "ba-lora" in name
    weights = {weight: getattr(config, weight) for weight in OUTPUTS}
    assert weights == {weight: PUBLISHED[task_type][weight] if regularized else 0.0 for weight in OUTPUTS}
    assert (config.anchor_weight, config.counterfactual_words) == (0.0, None)
    assert config.initialization in INITIALIZATIONS
    config.resolve(task_type)  # a second time, as for a loaded one


@pytest.mark.parametrize("name", METHODS)
def test_recipe_and_python_agree(name):
    recipe = Recipe(model_name_or_path="m", train_file="a.jsonl", method=name)
    extra = {"sentence_dim": 3} if "selora" in name else {}
    read, python = balora_config(recipe, 0, sentence_dim=3), BALoraConfig(method=name, r=16, lora_alpha=16, **extra)
    for config in (read, python):
        config.resolve("CAUSAL_LM")
    if "selora" not in name:
        assert read.target_modules == python.target_modules == "all-linear"
    assert {**read.settings(), "quantization_config": None} == python.settings()


def test_the_default_is_ba_lora():
    config = BALoraConfig()
    assert (config.method, config.initialization, config.target_modules) == ("ba-lora", "pissa", "all-linear")


@pytest.mark.parametrize("weight", [*OUTPUTS, "bias_path_weight"])
@pytest.mark.parametrize(("name", "instead"), [("lora", "lora+reg"), ("pissa", "ba-lora"), ("qdora", "qdora+reg")])
def test_a_weight_beside_a_plain_name_is_refused(name, instead, weight):
    with pytest.raises(BALoraError) as error:
        BALoraConfig(method=name, **{weight: 0.1})
    assert str(error.value).startswith(f"{weight}: 0.1 has no effect with method {name}: ")
    assert f" {instead};" in str(error.value)
    BALoraConfig(method=name, **{weight: 0.0}).resolve("CAUSAL_LM")
    BALoraConfig(method=instead, **{weight: 0.1}).resolve("CAUSAL_LM")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loar", "unknown method 'loar'; did you mean 'lora'?"),
        ("ba_lora", "did you mean 'ba-lora'?"),
        ("pisa+reg", "did you mean 'pissa+reg'?"),
        ("lora+anchor", "did you mean 'lora+anchors'?"),
        ("ba-lora+anchors+swap", "did you mean 'ba-lora+anchors+swaps'?"),
        ("xyz", "unknown method 'xyz'; there are lora, rslora, "),
        ("structural", "give balora.config.PRESETS['structural']"),
        ("asft", "give balora.config.PRESETS['asft']"),
        ("lora+swaps", "use lora+anchors+swaps or lora+reg+swaps"),
    ],
)
def test_a_wrong_name_is_told_the_right_one(name, message):
    with pytest.raises(BALoraError) as error:
        BALoraConfig(method=name)
    assert str(error.value).startswith("method: ")
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["llama", "bert", "t5"])
def test_targets_are_all_linear_layers_by_default(name):
    ours = get_balora_model(make(name), BALoraConfig(r=2))
    named = get_balora_model(make(name), BALoraConfig(r=2, target_modules="all-linear"))
    layers = {name for name, module in ours.named_modules() if hasattr(module, "lora_A")}
    assert layers == {name for name, module in named.named_modules() if hasattr(module, "lora_A")}
    assert not any("classifier" in layer or "lm_head" in layer or "embed" in layer for layer in layers)
    assert len(layers) > 10


def test_targets_of_selora_and_of_pefts_own_configuration_are_as_before():
    gated = get_balora_model(make("llama"), BALoraConfig(method="selora", r=2, sentence_dim=3))
    assert all("self_attn" in name for name in gated.balora_config.target_modules)
    everywhere = BALoraConfig(method="selora", r=2, sentence_dim=3, target_modules="all-linear")
    assert get_balora_model(make("llama"), everywhere).balora_config.target_modules == "all-linear"
    for config in (peft.LoraConfig(r=2), BALoraConfig(r=2, target_modules=None)):
        model = get_balora_model(make("llama"), config)
        assert set(model.peft_config["default"].target_modules) == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("saved", "weights", "name"),
    [
        ("pissa", {}, "ba-lora"),
        ("lora", {}, "lora+reg"),
        ("lora", {**dict.fromkeys(OUTPUTS, 0.0), "bias_path_weight": 0.5}, "lora+reg"),
        ("pissa", dict.fromkeys(OUTPUTS, 0.0), "pissa"),
        ("lora", {**dict.fromkeys(OUTPUTS, 0.0), "anchor_weight": 1.0}, "lora+anchors"),
        ("olora", {"anchor_weight": 0.25, "counterfactual_words": "gender"}, "olora+reg"),
    ],
)
def test_an_adapter_of_an_earlier_version_loads_as_the_method_that_it_was(saved, weights, name, tmp_path):
    regularized = "ba-lora" if saved == "pissa" else f"{saved}+reg"
    model = get_balora_model(make("llama"), BALoraConfig(method=regularized, r=2, **weights))
    train_steps(model, inputs_for("llama"), steps=1) if not weights else None
    model.save_pretrained(tmp_path)
    file = tmp_path / SETTINGS_FILE
    written = json.loads(file.read_text())
    assert written["method"] == model.balora_config.method == regularized
    assert f"| `method` | {regularized} |" in (tmp_path / "README.md").read_text()
    file.write_text(json.dumps({**written, "method": saved}))  # as earlier versions wrote it
    loaded = BALoraModel.from_pretrained(make("llama"), tmp_path, is_trainable=True)
    assert loaded.balora_config.method == name
    assert loaded.balora_config.settings() == {**model.balora_config.settings(), "method": name}
    if not weights:
        batch = inputs_for("llama")
        for one in (model.train(), loaded.train()):
            one.set_progress(0.5)
        expected, found = model(**batch), loaded(**batch)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
        assert found.components.keys() == expected.components.keys() >= {"consistency", "diversity", "spectral"}


def test_a_plain_method_has_no_schedule_to_tell_progress_to():
    model = get_balora_model(make("llama"), BALoraConfig(method="lora", r=2)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(**inputs_for("llama")).components.keys() == {"task"}
