"""The training forward is the sum it says, in any loop and any split of the batch."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from tiny_models import SMALL, inputs_for, make, train_steps, with_reg, without_labels

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.losses import consistency_loss, covariance_diversity_loss, spectral_loss, topk_entropy_loss
from balora.model.base import BALoraOutput
from balora.model.schedule import schedule_factor

WEIGHTS = {"consistency_weight": 0.7, "diversity_weight": 0.3, "spectral_weight": 0.2}
CONSTANT = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}


def adapted(name: str, method: str = "pissa", **settings):
    config = BALoraConfig(
        method=with_reg(method), r=4, lora_alpha=8, target_modules="all-linear", **CONSTANT, **settings
    )
    return get_balora_model(make(name), config)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("fused", [True, False])
def test_generation_objective_is_the_sum_of_its_losses(direction, fused):
    inputs = inputs_for("llama")
    settings = {"temperature": 2.0, "top_k": 7, "spectral_k": 3, "consistency_direction": direction}
    model = adapted("llama", **WEIGHTS, **settings, fused_lm_head=fused)
    train_steps(model, inputs)
    logits = model(**without_labels(inputs)).logits
    teacher = make("llama")(**without_labels(inputs)).logits
    mask, labels = inputs["attention_mask"], inputs["labels"]
    task = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    expected = (
        task
        + 0.7 * consistency_loss(logits, teacher, temperature=2.0, direction=direction, mask=mask)
        + 0.3 * topk_entropy_loss(logits, top_k=7, mask=mask)
        + 0.2 * spectral_loss(logits, k=3, normalization="frobenius", mask=mask)
    )
    output = model.train()(**inputs)
    assert isinstance(output, BALoraOutput)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.components["task"], task, rtol=1e-5, atol=1e-6)
    assert set(output.components) == {"task", "consistency", "diversity", "spectral"}
    assert not any(value.requires_grad for value in output.components.values())


def test_inputs_may_be_positional_as_with_peft():
    inputs = inputs_for("llama")
    model = adapted("llama", **WEIGHTS).train()
    positional = model(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"])
    torch.testing.assert_close(positional.loss, model(**inputs).loss)
    assert positional.loss != model(inputs["input_ids"], labels=inputs["labels"]).loss


def test_classification_objective_is_the_sum_of_its_losses():
    inputs = inputs_for("bert")
    model = adapted("bert", **WEIGHTS, spectral_k=2)
    train_steps(model, inputs)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    logits = model(**without_labels(inputs)).logits
    teacher = model.teacher_forward(**inputs).logits
    expected = (
        F.cross_entropy(logits, inputs["labels"])
        + 0.7 * consistency_loss(logits, teacher, temperature=2.0)
        + 0.3 * covariance_diversity_loss(logits)
        + 0.2 * spectral_loss(logits, k=2, normalization="nuclear")
    )
    torch.testing.assert_close(model.train()(**inputs).loss, expected, rtol=1e-5, atol=1e-6)


def test_diversity_of_classes_may_be_their_entropy():
    inputs = inputs_for("bert")
    only = {"consistency_weight": 0.0, "diversity_weight": 1.0, "spectral_weight": 0.0}
    model = adapted("bert", **only, diversity_loss="entropy")
    train_steps(model, inputs)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    p = model(**without_labels(inputs)).logits.softmax(-1)
    expected = (p * p.log()).sum() / len(p)
    torch.testing.assert_close(model.train()(**inputs).components["diversity"], expected, rtol=1e-5, atol=1e-6)


def test_generation_has_no_covariance():
    with pytest.raises(BALoraError, match="diversity_loss: a covariance of next-token logits"):
        adapted("llama", diversity_loss="covariance")


def test_the_teacher_s_gradient_does_not_reach_the_live_head():
    inputs = inputs_for("bert")
    model = adapted("bert", **WEIGHTS).eval()
    assert model.teacher_forward(**inputs).logits.grad_fn is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_a_batch_split_for_accumulation_gives_the_same_gradient(name):
    """8 × 1 against 4 × 2 and 1 × 8, with unequal numbers of labelled and of unpadded tokens."""
    inputs = inputs_for(name, rows=8)
    inputs["attention_mask"][5, 3:] = 0
    if name != "bert":
        inputs["labels"][5, 3:] = -100
        inputs["labels"][2, :9] = -100
    model = adapted(name, **{**WEIGHTS, "diversity_weight": 0.0 if name == "bert" else 0.3, "spectral_weight": 0.0})
    train_steps(model, inputs, steps=2)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    per_row = {"num_items_in_batch": (inputs["labels"][:, 1:] if name != "bert" else inputs["labels"]).ne(-100).sum()}
    per_row["num_tokens_in_batch"] = inputs["attention_mask"].sum() if name != "bert" else torch.tensor(8)
    results = {}
    for size in (8, 4, 1):
        model.zero_grad()
        total = 0.0
        for first in range(0, 8, size):
            part = {key: value[first : first + size] for key, value in inputs.items()}
            loss = model(**part, **per_row).loss
            loss.backward()
            total += loss.item()
        results[size] = total, gradients(model)
    model.zero_grad()
    whole = model(**inputs).loss  # without counts: a mean over this batch
    assert whole.item() == pytest.approx(results[8][0], rel=1e-5)
    for size in (4, 1):
        assert results[size][0] == pytest.approx(results[8][0], rel=1e-5)
        for key, gradient in results[8][1].items():
            torch.testing.assert_close(results[size][1][key], gradient, rtol=1e-4, atol=1e-7, msg=key)


def test_a_micro_batch_without_labels_to_learn_is_zero_not_nan():
    inputs = inputs_for("llama")
    inputs["labels"][:] = -100
    output = adapted("llama", **WEIGHTS).train()(**inputs)
    assert output.components["task"] == 0
    assert output.loss.isfinite()


def test_evaluation_mode_is_the_peft_model():
    inputs = inputs_for("llama")
    model = adapted("llama", **WEIGHTS).eval()
    output = model(**inputs)
    assert not isinstance(output, BALoraOutput)
    labels = inputs["labels"][:, 1:].flatten()
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels))
    prompt = inputs["input_ids"][1:, :5]
    generate = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(model.generate(input_ids=prompt, **generate), make("llama").generate(prompt, **generate))


def test_training_mode_without_labels_is_the_peft_model_too():
    output = adapted("llama").train()(**without_labels(inputs_for("llama")))
    assert not isinstance(output, BALoraOutput)


def test_a_weight_of_zero_costs_no_pass(monkeypatch):
    model = adapted("llama", consistency_weight=0.0, diversity_weight=0.0, spectral_weight=0.0).train()
    monkeypatch.setattr(model, "teacher_forward", lambda **_: pytest.fail("the teacher ran for nothing"))
    assert set(model(**inputs_for("llama")).components) == {"task"}


def test_one_output_is_a_regression_with_squared_error_to_the_teacher():
    torch.manual_seed(0)
    base = hf.BertForSequenceClassification(hf.BertConfig(**SMALL, num_labels=1, hidden_dropout_prob=0.0))
    with pytest.warns(UserWarning, match="one output"):
        model = get_balora_model(base, BALoraConfig(r=4, target_modules="all-linear", **WEIGHTS, **CONSTANT))
    inputs = {**inputs_for("bert"), "labels": torch.tensor([0.1, 0.9, 0.4, 0.2])}
    train_steps(model, inputs)
    output = model.train()(**inputs)
    expected = (model.eval()(**without_labels(inputs)).logits - model.teacher_forward(**inputs).logits).square().mean()
    assert set(output.components) == {"task", "consistency"}
    torch.testing.assert_close(output.components["consistency"], expected, rtol=1e-3, atol=1e-6)


def test_spectral_k_is_kept_below_the_number_of_classes():
    inputs = inputs_for("bert")
    with pytest.warns(UserWarning, match=r"spectral_k = 5 with 3 classes .* k = 2 is used"):
        clipped = adapted("bert", **WEIGHTS)
    with pytest.warns(UserWarning, match="clip_spectral_k=True would"):
        printed = adapted("bert", **WEIGHTS, clip_spectral_k=False)
    assert clipped.train()(**inputs).components["spectral"] > -1
    torch.testing.assert_close(printed.train()(**inputs).components["spectral"], torch.tensor(-1.0))


def test_multi_label_is_refused_unless_the_regularizers_are_off():
    config = hf.BertConfig(**SMALL, num_labels=3, problem_type="multi_label_classification")
    with pytest.raises(BALoraError, match="problem_type"):
        get_balora_model(hf.BertForSequenceClassification(config), BALoraConfig(target_modules="all-linear"))


def test_published_values_are_filled_in_by_task():
    generation = get_balora_model(make("llama"), BALoraConfig()).balora_config
    assert (generation.consistency_weight, generation.diversity_weight, generation.spectral_weight) == (
        0.025,
        0.005,
        0.005,
    )
    assert (generation.spectral_k, generation.consistency_schedule, generation.diversity_schedule) == (
        10,
        "cosine",
        "two_phase",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        glue = get_balora_model(make("bert"), BALoraConfig()).balora_config
    assert (glue.consistency_weight, glue.diversity_weight, glue.spectral_weight) == (0.15, 0.03, 0.03)
    assert (glue.spectral_k, glue.consistency_schedule) == (5, "constant")


def test_the_user_s_configuration_is_left_as_it_was():
    config = BALoraConfig()
    get_balora_model(make("llama"), config)
    assert config.consistency_weight is None
    assert config.task_type is None


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("cosine", [1, 0.5 * (1 + 2**-0.5), 0.5, 0.5 * (1 - 2**-0.5), 0]),
    ],
)
def test_schedules_at_the_quarters(schedule, values):
    for progress, value in zip((0, 0.25, 0.5, 0.75, 1), values, strict=True):
        assert schedule_factor(schedule, progress) == pytest.approx(value)


def test_two_phase_waits_then_ramps():
    factors = [schedule_factor("two_phase", p) for p in (0, 0.1999, 0.2, 0.225, 0.25, 0.6, 1)]
    assert factors == pytest.approx([0, 0, 0, 0.5, 1, 1, 1])
    assert schedule_factor("two_phase", 0.2, ramp=0.0) == 1


def test_a_loop_that_never_tells_progress_gets_full_weights_and_one_warning():
    model = get_balora_model(make("llama"), BALoraConfig(target_modules="all-linear")).train()
    with pytest.warns(UserWarning, match="set_progress"):
        output = model(**inputs_for("llama"))
    assert set(output.components) == {"task", "consistency", "diversity", "spectral"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs_for("llama"))
    model.set_progress(0.1)
    assert set(model(**inputs_for("llama")).components) == {"task", "consistency"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"method": "lorra"},
            r"method: unknown method 'lorra'; did you mean 'lora'\? There are lora",
        ),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights: 'pissa' is set by `method`"),
        ({"consistency_weight": -1.0}, r"consistency_weight: -1.0"),
        ({"diversity_weight": float("nan")}, r"diversity_weight: nan"),
        ({"top_k": 0}, r"top_k: 0"),
        ({"r": 0}, r"r: 0"),
        ({"pissa_niter": -1}, r"pissa_niter: -1"),
        ({"temperature": 0.0}, r"temperature: 0.0"),
        ({"consistency_direction": "back"}, r"consistency_direction: unknown 'back'"),
        ({"spectral_schedule": "linear"}, r"spectral_schedule: unknown 'linear'"),
        ({"bias": "all"}, r"bias: 'all' trains the base's own biases"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(BALoraError, match=message):
        BALoraConfig(**settings)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "k_porj"], r"target_modules: 'k_porj' matches nothing; there are .*k_proj"),
        (r".*\.qq_proj", r"target_modules: no module matches"),
    ],
)
def test_a_target_that_matches_nothing_is_named(targets, message):
    with pytest.raises(BALoraError, match=message):
        get_balora_model(make("llama"), BALoraConfig(target_modules=targets))


def test_a_model_for_another_task_is_refused():
    with pytest.raises(BALoraError, match="neither a causal language model nor a sequence classifier"):
        get_balora_model(hf.BertModel(hf.BertConfig(**SMALL)), BALoraConfig())
