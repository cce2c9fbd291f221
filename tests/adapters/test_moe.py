"""Mixtures of experts: adapters on attention and experts, an exact teacher, and the router loss."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from datasets import Dataset
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from tiny_models import MIXTURES, inputs_for, make, train_steps, with_reg, without_labels, word_tokenizer
from transformers import TrainingArguments
from trl import SFTConfig

from balora import BALoraConfig, BALoraError, BALoraModel, BALoraTrainer, get_balora_model
from balora.adapters.matrices import adapted_matrices
from balora.adapters.teacher import lora_layers
from balora.losses import consistency_loss, spectral_loss, topk_entropy_loss
from balora.recipe import Recipe
from balora.study.student import check_fit
from balora.training.sft import BALoraSFTTrainer

METHODS = ["lora", "rslora", "pissa", "olora", "milora", "lora-fa"]
#: All methods on one mixture, and an additive or a residual method on each other mixture.
CASES = [
    *(("mixtral", method) for method in METHODS),
    ("qwen2-moe", "pissa"),
    ("deepseek-v3", "lora"),
    ("deepseek-v3", "pissa"),
    ("gpt-oss", "pissa"),
]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
SHARED = [f"shared_experts.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")]
TARGETS = {
    "mixtral": {"target_modules": ["q_proj", "o_proj"], "target_parameters": EXPERTS},
    "qwen2-moe": {"target_modules": ["q_proj", "gate_proj", "down_proj"], "target_parameters": EXPERTS},
    "deepseek-v3": {"target_modules": ["q_a_proj", "o_proj"], "target_parameters": [*EXPERTS, *SHARED]},
    "gpt-oss": {"target_modules": ["q_proj"], "target_parameters": [*EXPERTS, "router.weight"]},
}
WEIGHTS = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2, "spectral_k": 3, "top_k": 7}
OFF = {f"{term}_weight": 0.0 for term in ("consistency", "diversity", "spectral")}
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
ROUTED = [name for name in MIXTURES if name != "deepseek-v3"]  # whose experts are balanced without a loss
EXACT = {"rtol": 0, "atol": 1e-5}


def adapted(name: str, method: str = "lora", base=None, **settings) -> BALoraModel:
    settings = {"r": 4, "lora_alpha": 8, **TARGETS[name], **CONSTANT, **settings}
    torch.manual_seed(0)
    return get_balora_model(base or make(name), BALoraConfig(method=with_reg(method), **settings))


def naive_router_loss(router_logits, mask, top_k: int = 2) -> torch.Tensor:
    """E·Σ f_e·P_e over all layers' tokens that are not padding (Switch Transformer, equations 4 to 6)."""
    rows = [row for layer in router_logits for row, counts in zip(layer, mask.flatten(), strict=True) if counts]
    experts = len(rows[0])
    loss = torch.zeros(())
    for expert in range(experts):
        chosen = sum(expert in row.topk(top_k).indices.tolist() for row in rows) / len(rows)
        loss = loss + chosen * sum(row.softmax(-1)[expert] for row in rows) / len(rows)
    return experts * loss


@pytest.mark.parametrize(("name", "method"), CASES)
def test_initialization_teacher_saving_and_merging_are_exact(name, method, tmp_path):
    inputs = without_labels(inputs_for(name))
    expected = make(name)(**inputs).logits
    model = adapted(name, method).eval()
    torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, expected, **EXACT)

    train_steps(model, inputs_for(name))
    trained = model(**inputs).logits
    assert (trained - expected).abs().max() > 1e-2, "the student has not moved, so nothing was shown"
    torch.testing.assert_close(model.train().teacher_forward(**inputs).logits, expected, **EXACT)

    model.eval().save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, trained, **EXACT)
    torch.testing.assert_close(stock.merge_and_unload()(**inputs).logits, trained, **EXACT)
    reloaded = BALoraModel.from_pretrained(make(name), tmp_path)
    torch.testing.assert_close(reloaded(**inputs).logits, trained, rtol=0, atol=0)
    torch.testing.assert_close(reloaded.teacher_forward(**inputs).logits, expected, **EXACT)

    torch.testing.assert_close(reloaded.merge_and_unload()(**inputs).logits, trained, **EXACT)
    with model.disable_adapter():
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
    torch.testing.assert_close(model.unload()(**inputs).logits, expected, **EXACT)


@pytest.mark.parametrize("name", MIXTURES)
def test_each_expert_is_decomposed_separately(name):
    model = adapted(name, "pissa")
    experts = make(name).get_submodule("model.layers.1.mlp.experts")
    layers = [layer for layer in lora_layers(model).values() if isinstance(layer, ParamWrapper)]
    layers = [layer for layer in layers if layer.parameter_name == "down_proj"]
    for expert, matrix in enumerate(adapted_matrices(layers[-1], "default")):
        weight = experts.down_proj[expert].detach().numpy()
        weight = weight.T if name == "gpt-oss" else weight
        u, s, vh = np.linalg.svd(weight)
        leading = u[:, :4] * s[:4] @ vh[:4]
        np.testing.assert_allclose(matrix.weight.detach(), weight - leading, rtol=0, atol=1e-6)
        np.testing.assert_allclose(2 * (matrix.b @ matrix.a).detach(), leading, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_bfloat16_teacher_is_within_rounding(method):
    inputs = without_labels(inputs_for("mixtral"))
    expected = make("mixtral").bfloat16()(**inputs).logits.float()
    model = adapted("mixtral", method, make("mixtral").bfloat16())
    assert (model.teacher_forward(**inputs).logits.float() - expected).norm() < 2**-7 * expected.norm()


@pytest.mark.parametrize(("name", "fused"), [*((name, True) for name in MIXTURES), ("mixtral", False)])
def test_loss_equals_naive_loss_with_router_term(name, fused):
    model, inputs = adapted(name, "pissa", **WEIGHTS, fused_lm_head=fused), inputs_for(name)
    train_steps(model, inputs, steps=2)
    given, mask = without_labels(inputs), inputs["attention_mask"]
    plain = model(**given)
    teacher = model.teacher_forward(**given).logits
    task = F.cross_entropy(plain.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    terms = {
        "task": task,
        "consistency": consistency_loss(plain.logits, teacher, temperature=2.0, mask=mask),
        "diversity": topk_entropy_loss(plain.logits, top_k=7, mask=mask),
        "spectral": spectral_loss(plain.logits, k=3, normalization="frobenius", mask=mask),
    }
    if name in ROUTED:
        terms["router"] = 0.2 * naive_router_loss(plain.router_logits, mask)
        assert terms["router"] > 0.2 * 2, "routers that prefer nobody would show nothing"
    weights = {"task": 1, "router": 1, "consistency": 0.7, "diversity": 0.3, "spectral": 0.2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = model.train()(**inputs)
    assert (output.logits is None) == fused
    assert output.components.keys() == terms.keys()
    for term, value in terms.items():
        torch.testing.assert_close(output.components[term], value.detach(), rtol=1e-4, atol=1e-6, msg=term)
    expected = sum(weights[term] * value for term, value in terms.items())
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for got, wanted in zip(
        torch.autograd.grad(output.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item() + 1e-9)


@pytest.mark.parametrize("name", ROUTED)
def test_router_loss_gradient_reaches_adapters(name):
    inputs = inputs_for(name)
    model = adapted(name, **OFF)
    train_steps(model, inputs, steps=2)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients = []
    for coefficient in (0.2, 1e-12):
        model.get_base_model().router_aux_loss_coef = coefficient
        gradients.append(torch.autograd.grad(model.train()(**inputs).loss, parameters.values()))
    router_logits = model.eval()(**without_labels(inputs)).router_logits
    loss = 0.2 * naive_router_loss(router_logits, inputs["attention_mask"])
    # The last layer's experts come after every router.
    wanted = torch.autograd.grad(loss, parameters.values(), materialize_grads=True)
    moved = {key for key, gradient in zip(parameters, wanted, strict=True) if gradient.abs().max() > 1e-6}
    assert any("experts" in key for key in moved)
    assert any("self_attn" in key for key in moved)
    for with_loss, without, expected in zip(*gradients, wanted, strict=True):
        torch.testing.assert_close(with_loss - without, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_router_loss_of_micro_batches_is_weighted_by_tokens(fused):
    model, inputs = adapted("mixtral", **OFF, fused_lm_head=fused), inputs_for("mixtral")
    parts = [{key: value[rows] for key, value in inputs.items()} for rows in (slice(0, 1), slice(1, 4))]
    counts = {
        "num_items_in_batch": (inputs["labels"][:, 1:] != -100).sum(),
        "num_tokens_in_batch": inputs["attention_mask"].sum(),
    }
    total = sum(model.train()(**part, **counts).loss for part in parts)
    plain = make("mixtral")(**without_labels(inputs))
    expected = F.cross_entropy(plain.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    for part in parts:
        share = part["attention_mask"].sum() / inputs["attention_mask"].sum()
        router_logits = make("mixtral")(**without_labels(part)).router_logits
        expected = expected + 0.2 * share * naive_router_loss(router_logits, part["attention_mask"])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=0)


def test_no_router_loss_without_router_logits():
    base = make("mixtral")
    base.config.output_router_logits = False
    output = adapted("mixtral", base=base, **OFF).train()(**inputs_for("mixtral"))
    assert output.components.keys() == {"task"}


class AddsMore(hf.MixtralForCausalLM):
    """Adds a small extra term to its loss."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        if output.loss is not None:
            output.loss = output.loss + 0.003 * output.aux_loss
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_terms_of_the_models_own_loss_are_kept(dtype):
    """In bfloat16 too, where the term is smaller than the rounding of logits."""
    base, inputs = AddsMore(make("mixtral").config).to(dtype), inputs_for("mixtral")
    expected = base(**inputs).loss
    model = adapted("mixtral", base=base, **OFF).train()
    with pytest.warns(UserWarning, match="its loss is not the cross-entropy of its logits"):
        output = model(**inputs)
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_gradient_checkpointing_gives_equal_gradients(method):
    inputs, gradients = inputs_for("mixtral"), []
    for checkpointing in (False, True):
        model = adapted("mixtral", method, **WEIGHTS).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        train_steps(model, inputs, steps=1)
        model.train()(**inputs).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize("name", ["mixtral", "deepseek-v3"])
def test_trainer_reduces_loss_in_twenty_steps(name, tmp_path):
    inputs = inputs_for(name)
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(4)]
    arguments = {"max_steps": 20, "learning_rate": 3e-2, "logging_steps": 1, "per_device_train_batch_size": 2}
    trainer = BALoraTrainer(
        model=adapted(name, "pissa"),
        args=TrainingArguments(str(tmp_path), report_to="none", disable_tqdm=True, use_cpu=True, **arguments),
        train_dataset=rows,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    first, last = (np.mean([row["loss"] for row in part]) for part in (logged[:2], logged[-4:]))
    assert last < 0.95 * first
    assert all(("loss_router" in row) == (name == "mixtral") for row in logged)
    for row in logged:
        parts = [
            row[f"weight_{term}"] * row.get(f"loss_{term}", 0) for term in ("consistency", "diversity", "spectral")
        ]
        assert row["loss"] == pytest.approx(row["loss_task"] + row.get("loss_router", 0) + sum(parts), rel=1e-4)


def sft_trainer(tmp_path, name: str, **settings) -> BALoraSFTTrainer:
    arguments = {"max_steps": 1, "logging_steps": 1, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    base = make(name)
    base.config.output_router_logits = False
    return BALoraSFTTrainer(
        model=adapted(name, base=base),
        args=SFTConfig(str(tmp_path), **arguments, bf16=False, max_length=8, **settings),
        processing_class=word_tokenizer(),
        train_dataset=Dataset.from_list([{"text": "a b c a"}] * 8),
    )


def test_router_coefficient_of_sft_config_is_used(tmp_path):
    losses = []
    for coefficient in (None, 0.4, 0.0):
        trainer = sft_trainer(tmp_path, "mixtral", router_aux_loss_coef=coefficient)
        trainer.train()
        losses.append(trainer.state.log_history[0].get("loss_router"))
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-5)
    assert losses[2] is None
    with pytest.raises(BALoraError, match="router_aux_loss_coef: DeepseekV3ForCausalLM has no router loss"):
        sft_trainer(tmp_path, "deepseek-v3", router_aux_loss_coef=0.1)


@pytest.mark.parametrize(
    ("name", "method", "settings", "message"),
    [
        ("mixtral", "dora", {}, "target_parameters: PEFT has no DoRA for parameters"),
        ("mixtral", "lora", {"lora_dropout": 0.1}, "target_parameters: PEFT has no lora_dropout for parameters"),
        ("mixtral", "lora", {"lora_bias": True}, "target_parameters: PEFT has no lora_bias for parameters"),
        (
            "mixtral",
            "dora",
            {"target_modules": "all-linear", "target_parameters": None},
            "target_modules: PEFT includes the experts, .*name linear layers one by one",
        ),
        (
            "gpt-oss",
            "lora",
            {"target_parameters": ["experts.up_proj"]},
            "target_parameters: 'experts.up_proj' matches no matrix; there are experts.down_proj, experts.gate_up",
        ),
        (
            "mixtral",
            "lora",
            {"target_modules": ["w1"]},
            "target_modules: 'w1' matches nothing; there are .*for target_parameters experts.down_proj, experts.gate",
        ),
    ],
)
def test_settings_without_peft_adapter_for_experts_raise(name, method, settings, message):
    with pytest.raises(BALoraError, match=message):
        adapted(name, method, **settings)


@pytest.mark.parametrize("method", ["lora-ga", "corda"])
def test_data_initialization_of_experts_raises(method):
    config = BALoraConfig(method=with_reg(method), r=4, **TARGETS["mixtral"])
    with pytest.raises(BALoraError, match=f"target_parameters: {method} reads the inputs of linear layers"):
        get_balora_model(make("mixtral"), config, [inputs_for("mixtral")])


def test_warning_names_layers_that_peft_skips():
    with pytest.warns(UserWarning, match="PEFT skipped mlp.down_proj.weight, .*shared_experts.up_proj.weight") as seen:
        adapted("deepseek-v3", target_modules="all-linear", target_parameters=None)
    message = next(str(w.message) for w in seen if "PEFT skipped" in str(w.message))
    names = re.findall(r"\w+\.\w+\.weight", message)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = adapted("deepseek-v3", "pissa", target_modules="all-linear", target_parameters=names)
    assert not [w for w in seen if "PEFT skipped" in str(w.message)]
    inputs = without_labels(inputs_for("deepseek-v3"))
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, make("deepseek-v3")(**inputs).logits, **EXACT)


def test_users_configuration_is_unchanged():
    config = BALoraConfig(r=4, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_balora_model(make("mixtral"), config)
    assert (config.rank_pattern, config.alpha_pattern, config.target_parameters) == ({}, {}, None)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("adalora", "target_parameters: PEFT's AdaLoRA adapts only linear layers"),
        ("dora", "target_parameters: PEFT has no DoRA for parameters"),
        ("ba-lora", "target_parameters: 'experts.gate_proj' matches no matrix"),
    ],
)
def test_experts_in_a_recipe_are_checked_before_training(method, message):
    named = ["experts.gate_proj"] if method == "ba-lora" else EXPERTS
    targets = {"target_modules": ["q_proj"], "target_parameters": named}
    recipe = Recipe(model_name_or_path="m", train_file="t.jsonl", method=method, **targets)
    with pytest.raises(BALoraError, match=message):
        check_fit(make("mixtral"), recipe)
    check_fit(make("mixtral"), replace(recipe, target_parameters=None))
