"""Measurements equal those of whole logits for every kind of head, and build no logits where they need not."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_models import CAUSAL, SEQ2SEQ, SMALL, inputs_for, make, train_steps, without_labels

from balora import BALoraConfig, get_balora_model
from balora.adapters.teacher import is_untouched
from balora.evaluation.bias.likelihood import labelled_log_likelihoods
from balora.evaluation.noise import predicted
from balora.evaluation.perplexity import held_out_loss, padded_batches
from balora.evaluation.shift import measure_representation_shift
from balora.fused import Reader, TokenScorer, teacher_reader
from balora.model.drift import measure_drift, measure_loss_and_drift
from balora.utils.batches import token_batches

NO_TERMS = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}


def adapted(name: str, method: str = "pissa", **settings):
    config = BALoraConfig(method=method, r=4, lora_alpha=8, target_modules="all-linear", **NO_TERMS, **settings)
    model = get_balora_model(make(name), config)
    train_steps(model, inputs_for(name))
    return model


@torch.no_grad()
def naive_loss_and_drift(student, teacher, inputs, *, shift: int) -> tuple[float, dict[str, float]]:
    """Return both by their definitions on whole logits."""
    given = dict(without_labels(inputs))
    labels, mask = inputs["labels"], inputs.get("attention_mask")
    if shift == 0:
        given.setdefault("decoder_input_ids", student.get_base_model().prepare_decoder_input_ids_from_labels(labels))
        mask = labels != -100
    student.eval()
    z, taught = student(**given).logits.float(), teacher(**given).logits.float()
    cut = z[:, : labels.shape[1] - shift].flatten(0, 1)
    loss = F.cross_entropy(cut, labels[:, shift:].flatten()).item()
    q, p = z[mask.bool()].log_softmax(-1), taught[mask.bool()].log_softmax(-1)
    agreement = (q.argmax(-1) == p.argmax(-1)).float().mean().item()
    return loss, {"kl_to_base": (p.exp() * (p - q)).sum(-1).mean().item(), "top1_agreement": agreement}


def no_whole_logits(monkeypatch, rows: int) -> None:
    """Make every head refuse more positions than a check of a few tokens has."""
    own = torch.nn.Linear.forward

    def forward(module, hidden):
        if module.out_features == SMALL["vocab_size"]:
            assert hidden.numel() // hidden.shape[-1] <= rows, "whole logits"
        return own(module, hidden)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "t5-untied", "bart"])
def test_loss_and_drift_are_those_of_whole_logits(name):
    shift = 0 if name in SEQ2SEQ else 1
    model, inputs = adapted(name), inputs_for(name)
    expected_loss, expected = naive_loss_and_drift(model, make(name).eval(), inputs, shift=shift)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss, drift = measure_loss_and_drift(model, [inputs])
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert held_out_loss(model, [inputs]) == pytest.approx(expected_loss, rel=1e-6)
    assert drift == pytest.approx(expected, rel=2e-4)  # the naive divergence of near distributions is the less exact
    assert drift == measure_drift(model, [inputs])


def test_measuring_builds_no_logits_but_a_few(monkeypatch):
    model, inputs = adapted("llama"), inputs_for("llama")
    rows = {name: value.repeat(9, 1) for name, value in inputs.items()}
    expected = measure_loss_and_drift(model, [rows])
    no_whole_logits(monkeypatch, 16)
    assert measure_loss_and_drift(model, [rows]) == expected
    held_out_loss(model, [rows])
    predicted(model, [rows])
    measure_representation_shift(model, [rows])


def test_in_double_precision_they_are_the_naive_ones():
    model, inputs = adapted("llama").double(), inputs_for("llama")
    base = make("llama").double().eval()
    student = model.eval()
    with torch.no_grad():
        q = student(**without_labels(inputs)).logits.log_softmax(-1)[inputs["attention_mask"].bool()]
        p = base(**without_labels(inputs)).logits.log_softmax(-1)[inputs["attention_mask"].bool()]
    found = measure_drift(model, [inputs], base)["kl_to_base"]
    assert found == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-9)


def test_a_teacher_may_be_a_model_a_method_or_any_function():
    model, inputs = adapted("llama"), inputs_for("llama")
    base = make("llama").eval()
    own = measure_drift(model, [inputs])
    for teacher in (base, base.forward, model.teacher_forward):
        assert measure_drift(model, [inputs], teacher) == pytest.approx(own, rel=1e-4)
    assert teacher_reader(model, None).pretrained
    assert not teacher_reader(model, base).pretrained
    with pytest.warns(UserWarning, match="measured on whole logits, a few rows at a time"):
        found = measure_drift(model, [inputs], lambda **given: base(**given))
    assert found == pytest.approx(own, rel=1e-4)


@pytest.mark.parametrize("kind", ["lora on the head", "head trained in full", "prompt"])
def test_adapters_of_peft_on_and_beside_the_head(kind):
    base = make("llama")
    config = {
        "lora on the head": LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False),
        "head trained in full": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "prompt": PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }[kind]
    model, inputs = get_peft_model(copy.deepcopy(base), config), inputs_for("llama")
    if kind == "head trained in full":
        torch.nn.init.normal_(model.get_base_model().lm_head.modules_to_save["default"].weight)
    model.eval()
    with torch.no_grad():
        logits = model(**without_labels(inputs)).logits[:, -inputs["labels"].shape[1] :]
    labels = inputs["labels"]
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()).item()
    assert held_out_loss(model, [inputs]) == pytest.approx(expected, rel=1e-6)


def test_a_head_that_is_not_supported_is_read_a_few_rows_at_a_time(monkeypatch):
    base = make("llama")
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)).eval()
    inputs = inputs_for("llama")
    whole = held_out_loss(model, [inputs])
    length, vocabulary = inputs["input_ids"].shape[1], SMALL["vocab_size"]
    monkeypatch.setattr("balora.fused.token_scorer.CHUNK_ELEMENTS", {"cpu": length * vocabulary})
    seen = []
    model.register_forward_pre_hook(lambda *given: seen.append(len(given[2]["input_ids"])), with_kwargs=True)
    with pytest.warns(UserWarning, match="its head is a Linear, not a plain linear layer"):
        assert held_out_loss(model, [inputs]) == pytest.approx(whole, rel=1e-6)
    assert set(seen) == {1}


def test_masked_models_are_scored_at_the_same_position():
    torch.manual_seed(0)
    model = hf.BertForMaskedLM(hf.BertConfig(**SMALL)).eval()
    ids = [[5, 6, 7, 8], [9, 10, 11]]
    windows = [(own, [-100, own[1] + 1] + [-100] * (len(own) - 2)) for own in ids]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = labelled_log_likelihoods(model, windows, shift=0, batch_size=2)
    with torch.no_grad():
        expected = [model(torch.tensor([own])).logits[0, 1].log_softmax(-1)[own[1] + 1].item() for own in ids]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_under_autocast_the_head_multiplies_as_the_model_does():
    model = make("llama").eval()
    inputs = inputs_for("llama")
    forward = torch.autocast("cpu", torch.bfloat16)(model.forward)
    reader = Reader(forward, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hidden = reader.hidden_states(without_labels(inputs))
    assert hidden.dtype == torch.bfloat16
    with torch.no_grad():
        logits = forward(**without_labels(inputs)).logits
    labels = torch.zeros(logits.shape[:2], dtype=torch.long)
    scores = TokenScorer(reader)(without_labels(inputs), labels, torch.ones_like(labels, dtype=torch.bool))
    expected = logits.float().log_softmax(-1)[..., 0].flatten().double()
    torch.testing.assert_close(scores.log_p, expected, rtol=1e-5, atol=1e-6)


class TestUntouched:
    def test_an_adapter_without_a_step_changes_nothing_and_its_teacher_does_not_run(self, monkeypatch):
        config = BALoraConfig(method="lora", r=2, target_modules=["q_proj"], **NO_TERMS)
        model, inputs = get_balora_model(make("llama"), config), inputs_for("llama")
        assert is_untouched(model)
        expected = held_out_loss(model, [inputs])
        monkeypatch.setattr(model, "teacher_forward", None)
        loss, drift = measure_loss_and_drift(model, [inputs], model)
        assert (loss, drift) == (expected, {"kl_to_base": 0.0, "top1_agreement": 1.0})

    @pytest.mark.parametrize("method", ["lora", "dora", "pissa"])
    def test_a_trained_adapter_is_not_untouched(self, method):
        assert not is_untouched(adapted("llama", method))

    def test_nor_is_a_module_trained_in_full_or_a_plain_model(self):
        config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
        model = get_peft_model(make("llama"), config)
        assert is_untouched(model)
        with torch.no_grad():
            model.get_base_model().lm_head.modules_to_save["default"].weight[0, 0] += 1
        assert not is_untouched(model)
        assert not is_untouched(make("llama"))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("budget", [1, 30, 4096])
def test_batches_keep_rows_and_tokens_within_their_limits(batch_size, budget):
    lengths = np.random.default_rng(0).integers(1, 60, 50).tolist()
    parts = list(token_batches(lengths, batch_size, budget))
    assert sorted(row for part in parts for row in part) == [*range(50)]
    for part in parts:
        assert 1 <= len(part) <= batch_size
        assert len(part) == 1 or len(part) * max(lengths[row] for row in part) <= budget
    assert list(token_batches([], batch_size, budget)) == []


def test_a_budget_does_not_change_a_loss():
    model = make("llama").eval()
    windows = [([*range(3, 3 + size)],) * 2 for size in (5, 60, 12, 40, 33)]
    losses = {
        budget: held_out_loss(model, [batch for _, batch in padded_batches(windows, 4, budget)])
        for budget in (1, 70, 4096)
    }
    assert len(losses) == 3
    assert not math.isnan(losses[1])
    assert list(losses.values()) == pytest.approx([losses[1]] * 3, rel=1e-6)
