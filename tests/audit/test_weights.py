import numpy as np
import pytest
import torch
import transformers as hf
from audit_models import IDS, TARGETS, adapted, load, moved, save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from balora.audit.models import load_audited
from balora.audit.weights import intruder_dimensions, measure_weights

LORA = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
CONFIGS = {
    "lora": LoraConfig(**LORA),
    "dora": LoraConfig(**LORA, use_dora=True),
    "bias": LoraConfig(**LORA, lora_bias=True),
    "ia3": IA3Config(target_modules=["q_proj", "v_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "pissa": LoraConfig(**LORA, init_lora_weights="pissa"),
}


def naive(base, tuned, first, near):
    """Vector by vector."""
    left, new = (np.linalg.svd(np.asarray(w, dtype=np.float32), full_matrices=False)[0] for w in (base, tuned))
    count = 0
    for k in range(min(first, new.shape[1])):
        best = 0.0
        for i in range(left.shape[1]):
            best = max(best, abs(sum(a * b for a, b in zip(new[:, k].tolist(), left[:, i].tolist(), strict=True))))
        count += best < near
    return count


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 14), st.integers(2, 14)),
    seed=st.integers(0, 999),
    first=st.integers(1, 12),
    scale=st.floats(0.1, 5),
)
def test_intruders_are_those_of_a_naive_double_loop(shape, seed, first, scale):
    generator = torch.Generator().manual_seed(seed)
    base, change = (torch.randn(shape, generator=generator) for _ in range(2))
    tuned = base + scale * change
    assert intruder_dimensions(base, tuned, first=first, near=0.5) == naive(base, tuned, first, 0.5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_planted_directions_are_found_and_no_others(count):
    generator = torch.Generator().manual_seed(0)
    left = torch.linalg.qr(torch.randn(40, 12 + count, generator=generator)).Q
    right = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    base = left[:, :12] @ torch.diag(torch.arange(12.0, 0, -1)) @ right.T
    # The weakest inputs write something that no output of the base was.
    tuned = base + 100 * left[:, 12:] @ right[:, 12 - count :].T
    assert intruder_dimensions(base, tuned) == count


def test_what_was_not_touched_has_none(folders, tmp_path):
    get_peft_model(load(folders["causal"]), CONFIGS["lora"]).save_pretrained(tmp_path)
    mean, *each = measure_weights(load_audited(folders["causal"], str(tmp_path)), limit=None)
    assert mean.tuned.value == 0
    assert [f.tuned.value for f in each] == [0] * 4


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_s_matrices_are_those_that_it_merges_to(name, folders, tmp_path):
    folder, tuned = adapted(folders["causal"], tmp_path, CONFIGS[name], scale=0.2)
    audited = load_audited(folders["causal"], folder)
    with torch.no_grad():
        before = audited.tuned(IDS).logits
    state = {key: value.clone() for key, value in audited.tuned.state_dict().items()}
    mean, *each = measure_weights(audited, limit=None)
    assert [f.on for f in each] == [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qv"]
    base = dict(load(folders["causal"]).named_modules())
    if name == "bias":  # which PEFT cannot merge into layers without one
        for config in tuned.peft_config.values():
            config.lora_bias = False
        for module in tuned.modules():
            for own in getattr(module, "lora_bias", {}):
                module.lora_bias[own] = False
    merged = dict(tuned.merge_and_unload().named_modules())
    counts = [naive(base[f.on].weight.detach(), merged[f.on].weight.detach(), 10, 0.5) for f in each]
    assert [f.tuned.value for f in each] == counts
    assert mean.tuned.value == pytest.approx(np.mean(counts))
    assert (mean.units, mean.unit, mean.base) == (4, "matrices", None)
    with torch.no_grad():  # and the model is as it was
        assert torch.equal(audited.tuned(IDS).logits, before)
    after = audited.tuned.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in state.items())


@pytest.mark.parametrize("full", [False, True])
def test_matrices_of_gpt2_are_the_right_way_round(full, folders, tmp_path):
    base = load(folders["gpt2"])
    if full:
        tuned = moved(load(folders["gpt2"]), scale=0.2)
        folder = save_model(tuned, tmp_path)
    else:
        config = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
        folder, adapter = adapted(folders["gpt2"], tmp_path, config, scale=0.2)
        tuned = adapter.merge_and_unload()
    figures = {f.on: f for f in measure_weights(load_audited(folders["gpt2"], folder), limit=None)}
    name = "transformer.h.1.attn.c_attn"
    old, new = (model.get_submodule(name).weight.detach() for model in (base, tuned))
    assert old.shape == (32, 96)
    assert figures[name].tuned.value == naive(old.T, new.T, 10, 0.5)
    # The head is the embeddings' own matrix, a linear layer all the same.
    assert ("lm_head" in figures) == full


def test_of_full_tuning_only_what_changed_is_looked_at(folders, tmp_path):
    tuned = load(folders["causal"])
    with torch.no_grad():
        tuned.model.layers[1].mlp.up_proj.weight += 1
    figures = measure_weights(load_audited(folders["causal"], save_model(tuned, tmp_path)), limit=None)
    assert [f.on for f in figures] == ["", "model.layers.1.mlp.up_proj"]


@pytest.mark.parametrize(
    ("limit", "layers"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 3]), (9, [0, 1, 2, 3]), (None, [0, 1, 2, 3])]
)
def test_a_limit_is_spread_over_the_model(limit, layers, folders, tmp_path):
    folder, _ = adapted(folders["causal"], tmp_path, CONFIGS["lora"])
    _, *each = measure_weights(load_audited(folders["causal"], folder), limit=limit)
    every = [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in "qv"]
    assert [f.on for f in each] == [every[i] for i in layers]


def test_where_no_matrix_was_changed_there_is_nothing_to_say(folders, tmp_path):
    config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    folder, _ = adapted(folders["causal"], tmp_path, config)
    assert measure_weights(load_audited(folders["causal"], folder), limit=None) == []


def test_an_encoder_s_head_is_looked_at_where_both_have_one(folders, tmp_path):
    tuned = moved(load(folders["bert"], hf.AutoModelForSequenceClassification))
    figures = measure_weights(load_audited(folders["bert"], save_model(tuned, tmp_path)), limit=None)
    assert {"classifier", "bert.pooler.dense"} < {f.on for f in figures}
