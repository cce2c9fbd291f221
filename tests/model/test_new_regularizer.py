"""A regularizer that balora does not ship, as one entry in the table: weighted, logged, calibrated, turned off."""

from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tiny_models import GROUPED, inputs_for, make, off_its_start, train_steps, without_labels
from torch import Tensor

import balora.fused.chunks
from balora import BALoraConfig, BALoraError, get_balora_model
from balora.config.ranges import Count, Weight
from balora.config.regularizers import Schedule
from balora.model.calibration import calibrate, default_fractions
from balora.model.regularizers import TERMS, Term, turned_off

OFF = {"consistency_weight": 0.0, "diversity_weight": 0.0, "spectral_weight": 0.0}
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}


def jensen_shannon(student: Tensor, teacher: Tensor | None, *, temperature: float) -> Tensor:
    """(KL(P ‖ M) + KL(F ‖ M))/2 at a temperature, M the mean of the two distributions, `(m,)`."""
    p, q = (teacher / temperature).log_softmax(-1), (student / temperature).log_softmax(-1)
    mean = torch.stack([p, q]).logsumexp(0) - torch.log(torch.tensor(2.0, dtype=p.dtype))
    return ((p.exp() * (p - mean)).sum(-1) + (q.exp() * (q - mean)).sum(-1)) / 2


def entropy_bound(student: Tensor, teacher: Tensor | None, *, bound_k: int) -> Tensor:
    """Entropy beyond log K, without a teacher, `(m,)`."""
    assert teacher is None
    log_p = student.log_softmax(-1)
    return F.softplus(-(log_p.exp() * log_p).sum(-1) - torch.log(torch.tensor(float(bound_k), dtype=student.dtype)))


@dataclass
class WithNewTerms(BALoraConfig):
    """The settings of two more terms."""

    jensen_shannon_weight: Weight = 0.0
    entropy_bound_weight: Weight = 0.0
    bound_k: Count = 7
    entropy_bound_schedule: Schedule = "constant"


@pytest.fixture(autouse=True)
def new_terms(monkeypatch):
    js = Term(
        weight="jensen_shannon_weight",
        mean_of="tokens",
        needs_teacher=True,
        token_loss=jensen_shannon,
        settings=("temperature",),
        fraction=0.1,
    )
    bound = Term(
        weight="entropy_bound_weight",
        mean_of="tokens",
        schedule="entropy_bound_schedule",
        token_loss=entropy_bound,
        settings=("bound_k",),
    )
    monkeypatch.setitem(TERMS, "jensen_shannon", js)
    monkeypatch.setitem(TERMS, "entropy_bound", bound)


@pytest.fixture
def many_chunks(monkeypatch):
    monkeypatch.setattr(balora.fused.chunks, "CHUNK_ELEMENTS", {"cpu": 0})
    monkeypatch.setattr(balora.fused.chunks, "FEWEST_ROWS", 5)


def adapted(name: str, dtype: torch.dtype = torch.float64, **settings):
    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **OFF, **CONSTANT, **settings}
    return off_its_start(get_balora_model(make(name).to(dtype), WithNewTerms(method="lora+reg", **settings)))


def gradients(model, loss: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, named.values(), materialize_grads=True), strict=True))


def naive(model, inputs, picked: Tensor, rate: float) -> dict[str, Tensor]:
    """The two terms from whole logits, row by row."""
    student = model.eval()(**without_labels(inputs)).logits
    teacher = model.teacher_forward(**without_labels(inputs)).logits
    model.train()
    js = bound = 0.0
    mask = inputs["attention_mask"]
    for row, position in mask.nonzero().tolist():
        z, z_p = student[row, position][None], teacher[row, position][None]
        bound = bound + entropy_bound(z, None, bound_k=7)[0] / mask.sum()
        if picked[row]:
            js = js + jensen_shannon(z, z_p, temperature=2.0)[0] / (rate * mask.sum())
    return {"jensen_shannon": js, "entropy_bound": bound}


@pytest.mark.parametrize("together", [False, True])  # with the terms that have a closed form
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("name", "rate", "settings"),
    [
        ("llama", 1.0, {}),
        ("llama", 0.5, {"modules_to_save": ["lm_head"]}),
        ("gemma2", 0.5, {}),  # a softcap
        ("gemma2", 0.5, {"modules_to_save": ["lm_head"]}),
    ],
)
def test_loss_and_gradient_are_those_of_autograd_on_whole_logits(
    name, rate, settings, fused, together, many_chunks, monkeypatch
):
    inputs = inputs_for(name)
    shipped = {"consistency_weight": 0.2, "diversity_weight": 0.3} if together else {}
    settings = {**settings, **shipped, "fused_lm_head": fused, "sample_rate": rate}
    model = adapted(name, jensen_shannon_weight=0.7, entropy_bound_weight=0.4, **settings)
    without = adapted(name, **(settings if together else settings | {"sample_rate": 1.0}))
    picked = torch.ones(4, dtype=torch.bool) if rate == 1 else torch.tensor([True, False, False, True])
    for one in (model, without):
        monkeypatch.setattr(one, "_pick_sequences", lambda _: picked)
    output, rest = model(**inputs), without(**inputs)
    assert (output.logits is None) == fused
    terms = naive(model, inputs, picked, rate)
    for term, value in terms.items():
        assert value > 1e-4
        torch.testing.assert_close(output.components[term], value.detach(), rtol=1e-9, atol=0)
    added = 0.7 * terms["jensen_shannon"] + 0.4 * terms["entropy_bound"]
    # Transformers computes its own task loss, and Llama's norms, in float32.
    bound = {"rtol": 1e-10, "atol": 1e-12} if fused else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(output.loss.double(), (rest.loss + added).double(), **bound)
    found, expected, others = gradients(model, output.loss), gradients(model, added), gradients(without, rest.loss)
    assert any("lm_head" in key for key in found) == ("modules_to_save" in settings)
    for key, gradient in found.items():
        whole = others[key] + expected[key]
        scale = whole.abs().max().item()
        torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_fused_and_plain_agree_under_autocast(name, many_chunks):
    outputs = {}
    for fused in (True, False):
        settings = {"jensen_shannon_weight": 0.7, "entropy_bound_weight": 0.4, "fused_lm_head": fused}
        model = adapted(name, torch.float32, **settings)
        with torch.autocast("cpu", torch.bfloat16):
            outputs[fused] = model(**inputs_for(name))
        assert outputs[fused].components["jensen_shannon"].dtype == torch.float32
    for term, value in outputs[False].components.items():
        torch.testing.assert_close(outputs[True].components[term], value, rtol=4e-2, atol=1e-3, msg=term)


def test_a_batch_without_a_teacher_has_a_term_of_0(monkeypatch):
    for fused in (True, False):
        model = adapted("llama", jensen_shannon_weight=0.7, fused_lm_head=fused, sample_rate=0.5)
        monkeypatch.setattr(model, "_pick_sequences", lambda count: torch.zeros(count, dtype=torch.bool))
        output = model(**inputs_for("llama"))
        assert output.components["jensen_shannon"] == 0
        assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss).values())


def test_classes_take_a_mean_over_examples():
    inputs = inputs_for("bert")
    model = adapted("bert", jensen_shannon_weight=0.7, entropy_bound_weight=0.4)
    output = model(**inputs)
    student, teacher = model(**inputs).logits, model.teacher_forward(**inputs).logits
    expected = {
        "jensen_shannon": jensen_shannon(student, teacher, temperature=2.0).mean(),
        "entropy_bound": entropy_bound(student, None, bound_k=7).mean(),
    }
    for term, value in expected.items():
        torch.testing.assert_close(output.components[term], value.detach())
    task = F.cross_entropy(student, inputs["labels"])
    weighted = task + 0.7 * expected["jensen_shannon"] + 0.4 * expected["entropy_bound"]
    torch.testing.assert_close(output.loss, weighted)


def test_its_weight_follows_its_schedule_and_is_logged():
    model = adapted("llama", jensen_shannon_weight=0.7, entropy_bound_weight=0.4, entropy_bound_schedule="two_phase")
    model.set_progress(0.1)
    weights = model.current_weights()
    assert (weights["jensen_shannon"], weights["entropy_bound"]) == (0.7, 0.0)
    assert "jensen_shannon" in model(**inputs_for("llama")).components
    assert "entropy_bound" not in model(**inputs_for("llama")).components
    model.set_progress(0.5)
    assert model.current_weights()["entropy_bound"] == 0.4
    assert "entropy_bound" in model(**inputs_for("llama")).components


def test_a_weight_of_0_runs_no_teacher(monkeypatch):
    model = adapted("llama", entropy_bound_weight=0.4)
    monkeypatch.setattr(model, "teacher_forward", lambda **_: pytest.fail("the teacher ran"))
    assert set(model(**inputs_for("llama")).components) == {"task", "entropy_bound"}
    assert "jensen_shannon" not in model.current_weights()


def test_a_negative_weight_and_an_unknown_schedule_are_refused():
    with pytest.raises(BALoraError, match="jensen_shannon_weight: -1"):
        WithNewTerms(jensen_shannon_weight=-1.0)
    with pytest.raises(BALoraError, match="entropy_bound_schedule: unknown 'linear'"):
        WithNewTerms(entropy_bound_schedule="linear")


@pytest.mark.parametrize("fused", [True, False])
def test_it_is_calibrated_like_the_others(fused):
    model = adapted("llama", entropy_bound_weight=0.4, fused_lm_head=fused)  # the second is not measured, and off
    inputs = inputs_for("llama")
    found = calibrate(model, [inputs])
    assert set(found.norms) == {"task", *default_fractions()}
    assert list(default_fractions()) == ["consistency", "diversity", "spectral", "jensen_shannon"]
    js = naive(model, inputs, torch.ones(4, dtype=torch.bool), 1.0)["jensen_shannon"]
    squares = sum(gradient.square().sum() for gradient in gradients(model, js).values())
    assert found.norms["jensen_shannon"] == pytest.approx(squares.sqrt().item(), rel=1e-6)
    assert found.settings()["jensen_shannon_weight"] == pytest.approx(
        0.1 * found.norms["task"] / found.norms["jensen_shannon"], rel=5e-3
    )


def test_it_is_turned_off_where_regularizers_are():
    assert turned_off()["jensen_shannon_weight"] == turned_off()["entropy_bound_weight"] == 0.0
    with pytest.raises(BALoraError, match=r"jensen_shannon_weight: .* method with regularizers, such as lora\+reg"):
        WithNewTerms(method="lora", jensen_shannon_weight=0.1)


def test_training_with_it_brings_the_student_nearer_to_the_teacher():
    distances = {}
    for weight in (0.0, 200.0):
        torch.manual_seed(0)
        base = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)).eval()
        config = WithNewTerms(method="lora+reg", r=4, target_modules="all-linear", jensen_shannon_weight=weight, **OFF)
        model = get_balora_model(base, config)
        inputs = inputs_for("llama")
        train_steps(model, inputs, steps=20)
        distances[weight] = naive(model, inputs, torch.ones(4, dtype=torch.bool), 1.0)["jensen_shannon"].item()
    assert distances[200.0] < 0.75 * distances[0.0]


def test_the_table_has_every_weight_and_schedule_of_the_configuration():
    names = [field.name for field in fields(WithNewTerms)]
    assert {name for name in names if name.endswith("_weight")} == {term.weight for term in TERMS.values()}
    schedules = {term.schedule for term in TERMS.values() if term.schedule is not None}
    assert {name for name in names if name.endswith("_schedule")} == schedules
