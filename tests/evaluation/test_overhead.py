"""Parameters counted by hand."""

import pytest
from peft import LoraConfig, get_peft_model
from tiny_models import make, with_reg

from balora import BALoraConfig, get_balora_model
from balora.baselines import make_baseline
from balora.evaluation import parameter_overhead

QUERIES = {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_the_teacher_s_factors_do_not_count(method):
    base = size(make("llama"))
    model = get_balora_model(make("llama"), BALoraConfig(method=with_reg(method), **QUERIES))
    trained = 2 * 4 * (32 + 32)  # two layers, 32 × 32
    assert parameter_overhead(model) == {
        "trainable_parameters": trained,
        "total_parameters": base + trained,
        "parameter_overhead": trained / (base + trained),
    }


def test_a_classifier_s_head_counts_once():
    base = size(make("bert"))
    model = get_peft_model(make("bert"), LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS"))
    trained = 2 * 4 * (32 + 32) + 32 * 3 + 3
    found = parameter_overhead(model)
    assert (found["trainable_parameters"], found["total_parameters"]) == (trained, base + 2 * 4 * 64)


def test_all_of_a_model_or_nothing():
    assert parameter_overhead(make_baseline(make("llama-tied"), "full"))["parameter_overhead"] == 1
    frozen = make("llama").requires_grad_(False)
    assert parameter_overhead(frozen)["parameter_overhead"] == 0


def test_weights_in_four_bits_count_one_by_one():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    whole = get_balora_model(make("llama"), BALoraConfig(method="lora+reg", **QUERIES))
    model = make("llama")
    for layer in model.model.layers:
        dense = layer.mlp.up_proj
        packed = bitsandbytes.nn.Linear4bit(dense.in_features, dense.out_features, bias=False, quant_type="nf4")
        packed.load_state_dict(dense.state_dict())
        layer.mlp.up_proj = packed.to("cpu")
    model.is_loaded_in_4bit = True
    quantized = get_peft_model(model, LoraConfig(**QUERIES, task_type="CAUSAL_LM"))
    assert size(quantized) < size(whole)
    assert parameter_overhead(quantized) == parameter_overhead(whole)


def test_a_model_of_transformers_is_counted_too():
    model = make("bert")
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    assert parameter_overhead(model)["trainable_parameters"] == 32 * 3 + 3
    assert parameter_overhead(model)["total_parameters"] == size(model)
