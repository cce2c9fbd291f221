"""SeLoRA: adapters gated by each row's sentence, compared with explicit weights, alone and combined."""

import copy
import json
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tiny_models import inputs_for, make, widen, without_labels, word_tokenizer
from torch import Tensor
from trl import SFTConfig

from balora import BALoraConfig, BALoraError, BALoraModel, BALoraTrainer, get_balora_model
from balora.adapters.selora import gated_layers
from balora.adapters.teacher import lora_layers
from balora.model.drift import measure_drift
from balora.training.sft import BALoraSFTTrainer

D = 6
OFF = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0, "semantic_weight": 0.0}
ON = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2, "semantic_weight": 0.5}
ON |= {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")} | {"spectral_k": 3}
EXACT = {"rtol": 0, "atol": 1e-10}
pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore:fan_in_fan_out")


def settings_of(**settings) -> BALoraConfig:
    return BALoraConfig(**{"method": "selora+reg", "r": 4, "lora_alpha": 8, "sentence_dim": D, **settings})


def adapted(name: str = "llama", dtype: torch.dtype = torch.float64, **settings) -> BALoraModel:
    torch.manual_seed(0)
    return without_dropout(get_balora_model(make(name).to(dtype), settings_of(**settings)))


def without_dropout(model: BALoraModel) -> BALoraModel:
    for module in model.modules():
        for rate in ("p", "dropout"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model


def moved(name: str = "llama", dtype: torch.dtype = torch.float64, **settings) -> BALoraModel:
    """Build a model with all trained weights perturbed, deterministic for given settings."""
    model, generator = adapted(name, dtype, **settings), torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return model


def sentences(rows: int = 4, seed: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradients(model: BALoraModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model: BALoraModel, inputs: dict, steps: int = 1, lr: float = 1e-2, optimizer=torch.optim.AdamW) -> None:
    stepper = optimizer([p for p in model.parameters() if p.requires_grad], lr=lr)
    model.train()
    for _ in range(steps):
        stepper.zero_grad()
        model(**inputs).loss.backward()
        stepper.step()
    model.eval()


def naive_gate(model: BALoraModel, index: int, s: Tensor) -> Tensor:
    """Compute f(s) of one layer and one sentence, entry by entry."""
    gate = model.lora_gate
    trunk, head = gate.trunks[index % len(gate.trunks)], gate.heads[index]
    scale = math.sqrt(len(s)) / math.sqrt(sum(x * x for x in s.tolist()))
    hidden = []
    for row, bias in zip(trunk.weight.tolist(), trunk.bias.tolist(), strict=True):
        x = sum(w * scale * v for w, v in zip(row, s.tolist(), strict=True)) + bias
        hidden.append(x * 0.5 * (1 + math.erf(x / math.sqrt(2))))
    r = gate.ranks[index]
    m = torch.eye(r, dtype=torch.float64)
    for i in range(r):
        for j in range(r):
            weights = head.weight[i * r + j].tolist()
            m[i, j] += sum(w * h for w, h in zip(weights, hidden, strict=True)) + head.bias[i * r + j].item()
    return m


# ---------------------------------------------------------------------- the function


@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
@torch.no_grad()
def test_starts_exactly_as_the_pretrained_model(name):
    inputs = without_labels(inputs_for(name))
    model = adapted(name, torch.float32).eval()
    assert torch.equal(model(**inputs, sentence_embeds=sentences()).logits, make(name)(**inputs).logits)


def test_default_targets_are_attention_projections():
    names = {name.split(".")[-1] for name in lora_layers(adapted("t5"))}
    assert names == {"q", "k", "v", "o"}
    assert len(lora_layers(adapted("t5"))) == 2 * 4 + 2 * 2 * 4
    assert set(lora_layers(adapted("gpt2"))) == {
        f"transformer.h.{i}.attn.{child}" for i in (0, 1) for child in ("c_attn", "c_proj")
    }
    assert {name.split(".")[-1] for name in lora_layers(adapted(target_modules=["up_proj"]))} == {"up_proj"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("t5", {}),
        ("llama", {"gate": "per_layer", "rank_pattern": {"q_proj": 2}, "use_rslora": True}),
        ("gpt2", {"lora_bias": True, "target_modules": ["c_attn", "c_fc"]}),
    ],
    ids=["t5", "llama", "gpt2"],
)
@torch.no_grad()
def test_each_row_equals_a_model_with_explicit_weights(name, settings):
    model, inputs, s = moved(name, **settings).eval(), without_labels(inputs_for(name)), sentences()
    logits = model(**inputs, sentence_embeds=s).logits
    for row in range(4):
        base = make(name).double()
        for index, (layer_name, layer) in enumerate(lora_layers(model).items()):
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            delta = layer.scaling["default"] * b @ naive_gate(model, index, s[row]) @ a  # (out, in)
            module = base.get_submodule(layer_name)
            module.weight += delta.T if layer.fan_in_fan_out else delta
            if layer.lora_B["default"].bias is not None:
                module.bias += layer.scaling["default"] * layer.lora_B["default"].bias
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        seen = slice(None) if "decoder_input_ids" in inputs else alone["attention_mask"][0].bool()
        torch.testing.assert_close(logits[row][seen], base(**alone).logits[0][seen], **EXACT)


@pytest.mark.parametrize("name", ["t5", "llama"])
@torch.no_grad()
def test_rows_are_independent_and_depend_on_their_sentences(name):
    model, inputs, s = moved(name).eval(), without_labels(inputs_for(name)), sentences()
    together = model(**inputs, sentence_embeds=s).logits
    for row in range(4):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        torch.testing.assert_close(together[row : row + 1], model(**alone, sentence_embeds=s[[row]]).logits, **EXACT)
    assert (together[1] - model(**inputs, sentence_embeds=s.roll(1, 0)).logits[1]).abs().max() > 1e-3
    torch.testing.assert_close(model(**inputs, sentence_embeds=3 * s).logits, together, **EXACT)  # length is ignored


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_identity_gates_equal_lora(name):
    """Outputs, factors and gradients are compared after several steps."""
    inputs, s = inputs_for(name), sentences()
    model = adapted(name, **OFF)
    torch.manual_seed(0)
    settings = {key: value for key, value in OFF.items() if key != "semantic_weight"}
    config = BALoraConfig(
        method="lora+reg", r=4, lora_alpha=8, target_modules=model.balora_config.target_modules, **settings
    )
    plain = without_dropout(get_balora_model(make(name).double(), config))
    model.lora_gate.requires_grad_(False)
    step(model, {**inputs, "sentence_embeds": s}, steps=3)
    step(plain, inputs, steps=3)
    given = without_labels(inputs)
    torch.testing.assert_close(model(**given, sentence_embeds=s).logits, plain(**given).logits, **EXACT)
    expected = gradients(plain)
    assert gradients(model).keys() == expected.keys()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[key], **EXACT)
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-3


@pytest.mark.parametrize(("gate", "trunks"), [("shared", 1), ("per_layer", 8)])
def test_parameter_count_matches_the_docstring(gate, trunks):
    model = adapted(gate=gate, gate_hidden=5)
    assert sum(p.numel() for p in model.lora_gate.parameters()) == 8 * 16 * (5 + 1) + trunks * (D + 1) * 5
    assert all(p.requires_grad for p in model.lora_gate.parameters())


def test_every_gate_learns_once_b_is_nonzero():
    model, inputs = adapted(gate="per_layer", **ON), {**inputs_for("llama"), "sentence_embeds": sentences()}
    step(model, inputs, steps=2)
    model.zero_grad()
    model.train()(**inputs).loss.backward()
    for name, parameter in model.lora_gate.named_parameters():
        assert parameter.grad.abs().max() > 0, name


# ---------------------------------------------------------------------- the objective


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_semantic_term_equals_naive_computation_and_adds_to_the_others(name):
    inputs, s = inputs_for(name), sentences()
    outputs, grads = {}, {}
    for fused in (True, False):
        model = moved(name, **ON, semantic_min_similarity=None, fused_lm_head=fused).train()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="balora: .* trains on whole logits")
            outputs[fused] = model(**inputs, sentence_embeds=s)
        outputs[fused].loss.backward()
        grads[fused] = gradients(model)
    assert list(outputs[True].components) == ["task", "consistency", "diversity", "spectral", "semantic"]
    for term, value in outputs[False].components.items():
        torch.testing.assert_close(
            outputs[True].components[term], value.double(), rtol=1e-6, atol=0
        )  # Llama's own loss is in float32
    for key, gradient in grads[False].items():
        torch.testing.assert_close(grads[True][key], gradient, rtol=1e-5, atol=1e-7, msg=key)
    weighed = sum(ON.get(f"{term}_weight", 1.0) * value for term, value in outputs[True].components.items())
    torch.testing.assert_close(outputs[True].loss, weighed)

    total, pairs = [], [(n, m) for n in range(4) for m in range(n)]
    for index, layer in enumerate(lora_layers(model).values()):
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        deltas = [2.0 * b @ naive_gate(model, index, row) @ a for row in s]
        apart = [F.cosine_similarity(s[n], s[m], 0) * (deltas[n] - deltas[m]).square().sum() for n, m in pairs]
        total.append(sum(apart) / len(pairs))
    torch.testing.assert_close(outputs[True].components["semantic"], sum(total) / len(total), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_teacher_does_not_depend_on_sentences(name):
    model, inputs = moved(name).eval(), without_labels(inputs_for(name))
    expected = make(name).double()(**inputs).logits
    with torch.no_grad():
        torch.testing.assert_close(model.teacher_forward(**inputs).logits, expected, **EXACT)
        torch.testing.assert_close(
            model.teacher_forward(**inputs, sentence_embeds=sentences()).logits, expected, **EXACT
        )
        with model.disable_adapter():
            torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_gradient_checkpointing_gives_equal_gradients(name):
    inputs, results = {**inputs_for(name), "sentence_embeds": sentences()}, []
    for checkpointing in (True, False):
        model = moved(name, **ON).train()
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model(**inputs).loss.backward()
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    for key, gradient in results[1].items():
        torch.testing.assert_close(results[0][key], gradient, rtol=1e-9, atol=1e-12, msg=key)


def test_reentrant_checkpointing_raises():
    model = moved(**OFF, fused_lm_head=False).train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(BALoraError, match=r"use_reentrant=True .* gradient_checkpointing_kwargs"):
        model(**inputs_for("llama"), sentence_embeds=sentences())


def test_semantic_loss_aligns_gates_of_similar_sentences():
    inputs = inputs_for("llama")
    s = torch.cat([sentences(2), sentences(2) + 0.5 * sentences(2, seed=8)])  # rows 0 and 2, 1 and 3 are similar

    def distances(model: BALoraModel) -> float:
        pairs = [(m[0] - m[2]).norm() + (m[1] - m[3]).norm() for m in model.lora_gate(s)]
        return sum(pairs).item()

    after = {}
    for weight in (0.0, 20.0):
        settings = {"semantic_min_similarity": 0.5} if weight else {}
        model = moved(**{**OFF, "semantic_weight": weight}, **settings)
        before = distances(model)
        step(model, {**inputs, "sentence_embeds": s}, steps=10, lr=5e-3)
        after[weight] = distances(model)
    assert after[20.0] < 0.7 * after[0.0]
    assert after[20.0] < 0.7 * before


def test_drift_and_classifiers_take_sentence_embeds():
    model = moved("t5").eval()
    batch = {**inputs_for("t5"), "sentence_embeds": sentences()}
    assert measure_drift(model, [batch])["kl_to_base"] > 1e-3
    classifier = moved("bert", target_modules=["query", "value"], **ON).train()
    output = classifier(**inputs_for("bert"), sentence_embeds=sentences())
    output.loss.backward()
    assert set(output.components) == {"task", "consistency", "diversity", "spectral", "semantic"}


def test_model_can_be_copied_after_a_forward_pass():
    """The gates then have a graph, which cannot be copied."""
    model, batch = moved(**OFF).train(), {**inputs_for("llama"), "sentence_embeds": sentences()}
    expected = model(**batch).loss
    assert gated_layers(model)[0].lora_variant["default"].gate.grad_fn is not None
    copied = copy.deepcopy(model)
    assert gated_layers(copied)[0].lora_variant["default"].gate is None
    assert torch.equal(copied(**batch).loss, expected)


# ---------------------------------------------------------------------- generation


@pytest.mark.parametrize("name", ["t5", "llama"])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_generation_uses_each_rows_gate_with_and_without_cache(name, how):
    model = moved(name, target_modules="all-linear").eval()
    ids = torch.randint(5, 90, (4, 6), generator=torch.Generator().manual_seed(2))
    s = 5 * sentences()
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, **how}
    mask = torch.ones_like(ids)
    together = model.generate(input_ids=ids, attention_mask=mask, sentence_embeds=s, **how)
    cacheless = model.generate(input_ids=ids, attention_mask=mask, sentence_embeds=s, use_cache=False, **how)
    alone = [
        model.generate(input_ids=ids[[i]], attention_mask=mask[[i]], sentence_embeds=s[[i]], **how) for i in range(4)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, cacheless)
    assert not torch.equal(
        together, model.generate(input_ids=ids, attention_mask=mask, sentence_embeds=s.roll(1, 0), **how)
    )
    for inner in (model.get_base_model(), model):  # none is left from before
        with pytest.raises(BALoraError, match="sentence_embeds: missing"):
            inner.generate(input_ids=ids, attention_mask=mask, **how)


# ---------------------------------------------------------------------- trainers


def rows(count: int = 8) -> list[dict]:
    generator, s = torch.Generator().manual_seed(0), sentences(count)
    ids = torch.randint(5, 20, (count, 8), generator=generator)
    return [
        {"input_ids": x.tolist(), "attention_mask": [1] * 8, "labels": x.tolist()[: 4 + i % 4] + [-100] * (4 - i % 4)}
        | {"sentence_embeds": s[i].tolist()}
        for i, x in enumerate(ids)
    ]


def trainer_for(directory, model: BALoraModel, size: int = 8, accumulation: int = 1, **settings) -> BALoraTrainer:
    settings = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 1e9, **settings}
    settings = {"save_strategy": "no", **settings}
    args = hf.TrainingArguments(
        str(directory),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        lr_scheduler_type="constant",
        **settings,
    )
    return BALoraTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows()))


def test_gradient_accumulation_does_not_change_the_step(tmp_path):
    """Terms computed on a micro-batch's own matrix or pairs are off."""
    after, settings = [], {**ON, "spectral_weight": 0.0, "semantic_weight": 0.0}
    for size, accumulation in ((8, 1), (2, 4)):
        model = moved("t5", **settings)
        trainer_for(tmp_path, model, size, accumulation).train()
        after.append({n: p.detach() for n, p in model.named_parameters() if p.requires_grad})
    start = dict(moved("t5", **settings).named_parameters())
    assert all((after[0][n] - start[n]).abs().max() > 0 for n in after[0])
    for n, parameter in after[0].items():
        torch.testing.assert_close(after[1][n], parameter, rtol=1e-6, atol=1e-7, msg=n)


def test_semantic_terms_of_micro_batches_are_weighted_by_tokens():
    model = moved(**ON, semantic_min_similarity=None).train()
    inputs, s = inputs_for("llama"), sentences()
    counts = model.counts_of(inputs, inputs["labels"])
    for part in (slice(0, 2), slice(2, 4)):
        batch = {key: value[part] for key, value in inputs.items()} | {"sentence_embeds": s[part]}
        whole = model(**batch).components["semantic"]
        shared = model(**batch, num_items_in_batch=counts.items, num_tokens_in_batch=counts.tokens)
        share = batch["attention_mask"].sum() / inputs["attention_mask"].sum()
        torch.testing.assert_close(shared.components["semantic"], share * whole)
        assert whole.abs() > 1e-3
        weighed = sum(ON.get(f"{term}_weight", 1.0) * value for term, value in shared.components.items())
        torch.testing.assert_close(shared.loss, weighed)


def test_term_and_weight_are_logged(tmp_path):
    trainer = trainer_for(tmp_path, moved(**ON), learning_rate=0.0)
    trainer.train()
    log = next(row for row in trainer.state.log_history if "loss_semantic" in row)
    output = moved(**ON).train()(**trainer.data_collator(list(trainer.train_dataset)))
    assert log["loss_semantic"] == pytest.approx(output.components["semantic"].item(), rel=1e-5)
    assert log["weight_semantic"] == 0.5


def test_resuming_is_exact(tmp_path):
    trained, saved = {}, {"save_strategy": "steps", "save_steps": 2}
    for name, steps, checkpoint in (("whole", 4, None), ("half", 2, None), ("half", 4, "checkpoint-2")):
        torch.manual_seed(3)
        model = adapted(dtype=torch.float32, **ON)
        resumed = None if checkpoint is None else str(tmp_path / name / checkpoint)
        trainer = trainer_for(
            tmp_path / name, model, size=4, max_steps=steps, learning_rate=1e-2, optim="adamw_torch", **saved
        )
        trainer.train(resume_from_checkpoint=resumed)
        trained[name] = {key: value.clone() for key, value in model.state_dict().items() if "lora_" in key}
    for key, value in trained["whole"].items():
        assert torch.equal(value, trained["half"][key]), key
    assert any("lora_gate" in key and value.abs().max() > 0 for key, value in trained["whole"].items())


def test_sft_trainer_passes_sentences_and_rejects_packing(tmp_path):
    tokenizer = word_tokenizer()
    table = {"prompt": ["a b", "c"] * 2, "completion": [" b a", " c a"] * 2, "sentence_embeds": sentences().tolist()}
    args = {"max_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    trainer = BALoraSFTTrainer(
        model=moved(dtype=torch.float32, **ON),
        args=SFTConfig(str(tmp_path), per_device_train_batch_size=4, **args),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(table),
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "loss_task" in row]
    assert len(logged) == 2
    assert all(row["loss_semantic"] > 0 for row in logged)
    with pytest.raises(BALoraError, match=r"packing: .* one sentence vector for each row"):
        BALoraSFTTrainer(
            model=moved(dtype=torch.float32),
            args=SFTConfig(str(tmp_path), packing=True, max_length=16, **args),
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict(table),
        )


# ---------------------------------------------------------------------- saving and merging


@pytest.mark.parametrize("gate", ["shared", "per_layer"])
@pytest.mark.parametrize("name", ["t5", "llama"])
@torch.no_grad()
def test_reloaded_model_is_exact(name, gate, tmp_path):
    model, inputs, s = moved(name, torch.float32, gate=gate).eval(), without_labels(inputs_for(name)), sentences()
    model.save_pretrained(tmp_path)
    for trainable in (False, True):
        reloaded = BALoraModel.from_pretrained(make(name), tmp_path, is_trainable=trainable)
        assert reloaded.balora_config.settings() == model.balora_config.settings()
        states = zip(model.state_dict().items(), reloaded.state_dict().items(), strict=True)
        assert all(key == other and torch.equal(a, b) for (key, a), (other, b) in states)
        assert {p.requires_grad for p in reloaded.lora_gate.parameters()} == {trainable}
        again = reloaded.eval()(**inputs, sentence_embeds=s).logits
        assert torch.equal(again, model(**inputs, sentence_embeds=s).logits)
    card = (tmp_path / "README.md").read_text()
    assert "PEFT alone cannot load it" in card
    assert "sentence_embeds=s)  # s: (rows, 6)" in card


def test_stock_peft_raises_on_a_selora_folder(tmp_path):
    moved(dtype=torch.float32).save_pretrained(tmp_path)
    with pytest.raises(KeyError, match=r"SELORA .*BALoraModel.from_pretrained"):
        PeftModel.from_pretrained(make("llama"), tmp_path)
    with pytest.raises(KeyError, match="SELORA"):
        make("llama").load_adapter(str(tmp_path))
    modules = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    with pytest.raises(RuntimeError, match="size mismatch"):  # even with an explicit LoRA configuration
        PeftModel.from_pretrained(make("llama"), tmp_path, config=LoraConfig(r=4, target_modules=modules))


@pytest.mark.parametrize("name", ["t5", "llama", "gpt2"])
@torch.no_grad()
def test_merging_at_a_sentence_equals_the_model_at_that_sentence(name, tmp_path):
    inputs, s = without_labels(inputs_for(name)), sentences()[1]
    expected = moved(name).eval()(**inputs, sentence_embeds=s.expand(4, D)).logits
    folded = moved(name).eval()
    folded.merge_at(s)
    torch.testing.assert_close(folded(**inputs).logits, expected, **EXACT)
    folded.save_pretrained(tmp_path)
    stock = PeftModel.from_pretrained(make(name).double(), tmp_path).eval()
    torch.testing.assert_close(stock(**inputs).logits, expected, **EXACT)
    torch.testing.assert_close(stock.merge_and_unload()(**inputs).logits, expected, **EXACT)
    merged = moved(name).eval().merge_and_unload(sentence_embeds=s)
    torch.testing.assert_close(merged(**inputs).logits, expected, **EXACT)
    assert BALoraModel.from_pretrained(make(name).double(), tmp_path).balora_config.method == "lora+reg"


@torch.no_grad()
def test_merging_at_several_sentences_uses_their_mean_gate():
    model, s = moved(), sentences(5)
    layers = list(enumerate(lora_layers(model).values()))
    expected = [
        layer.lora_B["default"].weight
        @ (sum(naive_gate(model, i, row) for row in s) / 5)
        @ layer.lora_A["default"].weight
        for i, layer in layers
    ]
    model.merge_at(s)
    for delta, (_, layer) in zip(expected, layers, strict=True):
        torch.testing.assert_close(layer.get_delta_weight("default"), 2.0 * delta, **EXACT)


@torch.no_grad()
def test_four_bit_base_is_gated_and_merged(monkeypatch):
    pytest.importorskip("bitsandbytes")
    widen(monkeypatch)
    inputs, s = without_labels(inputs_for("llama")), sentences()[1]
    four_bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
    model = moved(dtype=torch.float32, quantization_config=four_bit).eval()
    apart = model(**inputs, sentence_embeds=sentences()).logits[1]
    expected = model(**inputs, sentence_embeds=s.expand(4, D)).logits
    torch.testing.assert_close(apart, expected[1], rtol=0, atol=1e-5)
    model.dequantize()
    torch.testing.assert_close(model(**inputs, sentence_embeds=s.expand(4, D)).logits, expected, rtol=0, atol=1e-5)
    merged = model.merge_and_unload(sentence_embeds=s)
    torch.testing.assert_close(merged(**inputs).logits, expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- errors


def test_missing_or_misshapen_sentence_embeds_raise():
    model, inputs = moved(**OFF), inputs_for("llama")
    for mode in (model.train(), model.eval()):
        with pytest.raises(BALoraError, match=r"sentence_embeds: missing.*add_sentence_embeds"):
            mode(**inputs)
        with pytest.raises(BALoraError, match=r"shape \(3, 6\) for 4 rows and sentence_dim 6; give \(4, 6\)"):
            mode(**inputs, sentence_embeds=sentences(3))
        with pytest.raises(BALoraError, match=r"shape \(4, 5\) for 4 rows"):
            mode(**inputs, sentence_embeds=sentences()[:, :5])
    with pytest.raises(BALoraError, match=r"shape \(2, 6\) for 4 rows"):
        model.generate(inputs["input_ids"], sentence_embeds=sentences(2))
    model(**without_labels(inputs), sentence_embeds=sentences())
    for inner in (model.get_base_model(), model):  # none is left from before
        with pytest.raises(BALoraError, match="sentence_embeds: missing"):
            inner(**without_labels(inputs))
    plain = get_balora_model(make("llama"), BALoraConfig(method="lora"))
    with pytest.raises(BALoraError, match="sentence_embeds: method lora does not use them"):
        plain(**inputs, sentence_embeds=sentences())


def test_merging_without_a_sentence_raises_and_changes_nothing():
    model, s, inputs = moved().eval(), sentences(), without_labels(inputs_for("llama"))
    before = model(**inputs, sentence_embeds=s).logits
    for merge in (model.merge_and_unload, model.merge_adapter, lambda: model.merge_and_unload(safe_merge=True)):
        with pytest.raises(BALoraError, match=r"merge: .*merge_and_unload\(sentence_embeds=…\)"):
            merge()
    assert torch.equal(model(**inputs, sentence_embeds=s).logits, before)
    with pytest.raises(BALoraError, match=r"shape \(1, 5\)"):
        model.merge_at(s[0, :5])
    with pytest.raises(BALoraError, match="sentence_embeds: method lora does not use them"):
        get_balora_model(make("llama"), BALoraConfig(method="lora")).merge_at(s)


def test_row_without_a_sentence_raises(tmp_path):
    trainer = trainer_for(tmp_path, adapted(**OFF))
    trainer.train_dataset = trainer.train_dataset.remove_columns("sentence_embeds")
    with pytest.raises(BALoraError, match="sentence_embeds: missing in a row"):
        trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sentence_dim": None}, "sentence_dim: missing; selora needs"),
        ({"sentence_dim": 0}, "sentence_dim: 0 is out of range"),
        ({"gate_hidden": 0}, "gate_hidden: 0 is out of range"),
        ({"gate": "both"}, "gate: unknown 'both'"),
        ({"semantic_weight": -1.0}, "semantic_weight: -1.0 is out of range"),
        ({"semantic_min_similarity": 2.0}, "semantic_min_similarity: 2.0 is out of range"),
        ({"semantic_reduction": "max"}, "semantic_reduction: unknown 'max'"),
        (
            {"method": "lora", "semantic_weight": 1.0},
            "semantic_weight: 1.0 has no effect with method lora",
        ),
        ({"use_dora": True}, "q_proj has PEFT's DoraLinearVariant"),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            "embed_tokens is a Embedding, and selora gates linear",
        ),
    ],
    ids=str,
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(BALoraError, match=message):
        adapted(**settings)


def test_experts_and_models_without_attention_raise():
    with pytest.raises(BALoraError, match="selora gates linear layers only"):
        adapted("mixtral", target_parameters=["mlp.experts.down_proj"])
    mamba = hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4, intermediate_size=32)
    )
    with pytest.raises(BALoraError, match=r"no module whose class name contains Attention; name the layers .*in_proj"):
        get_balora_model(mamba, settings_of())
