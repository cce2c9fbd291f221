"""Representation shift and linear CKA against naive loops, their invariances, and adapted models of each kind."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import inputs_for, make, train_steps, without_labels

from balora import BALoraConfig, get_balora_model
from balora.evaluation import linear_cka, measure_representation_shift, representation_shift
from balora.losses.bias_path import mean_of_tokens


@st.composite
def features(draw):
    n, d = draw(st.integers(3, 12)), draw(st.integers(2, 9))
    return np.random.default_rng(draw(st.integers(0, 2**31))).normal(size=(n, d))


def naive_cka(x, y):
    """From kernels centred by the centring matrix, element by element (Kornblith et al., equations 3 and 4)."""
    n = len(x)
    k = [[sum(a * b for a, b in zip(x[i], x[j], strict=True)) for j in range(n)] for i in range(n)]
    m = [[sum(a * b for a, b in zip(y[i], y[j], strict=True)) for j in range(n)] for i in range(n)]
    centring = np.eye(n) - 1 / n

    def hsic(a, b):
        return np.trace(np.array(a) @ centring @ np.array(b) @ centring) / (n - 1) ** 2

    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@settings(max_examples=40)
@given(features(), st.integers(2, 9), st.integers(0, 99))
def test_cka_is_that_of_the_paper_whichever_form_is_cheaper(x, width, seed):
    y = np.random.default_rng(seed).normal(size=(len(x), width))
    y[:, 0] += x[:, 0]
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), abs=1e-10)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-10)
    assert -1e-12 <= linear_cka(x, y) <= 1 + 1e-12


@pytest.mark.parametrize("shape", [(40, 5), (6, 30)])
def test_both_forms_are_taken(shape):
    x, y = np.random.default_rng(0).normal(size=(2, *shape))
    assert linear_cka(x, y) == pytest.approx(naive_cka(x, y), abs=1e-12)


@given(features(), st.floats(0.01, 100), st.floats(-10, 10), st.integers(0, 99))
def test_cka_sees_neither_rotation_nor_scale_nor_offset(x, scale, offset, seed):
    y = x + np.random.default_rng(seed).normal(size=x.shape)
    rotation = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(x.shape[1],) * 2))[0]
    assert linear_cka(x, scale * y @ rotation + offset) == pytest.approx(linear_cka(x, y), abs=1e-7)
    assert linear_cka(x, scale * x @ rotation + offset) == pytest.approx(1, abs=1e-7)


def test_cka_of_what_is_constant_is_undefined():
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert np.isnan(linear_cka(x, np.full((5, 3), 0.1)))
    assert np.isnan(linear_cka(np.full((5, 3), 0.1), x))
    stretched = x * [1, 1, 50]
    assert linear_cka(x, stretched) < 0.95  # a single direction's scale is seen


@given(features(), st.integers(0, 99), st.floats(0.01, 100))
def test_shift_is_a_relative_root_mean_square(x, seed, scale):
    y = x + np.random.default_rng(seed).normal(size=x.shape)
    moved = sum((b - a) ** 2 for p, q in zip(x, y, strict=True) for a, b in zip(p, q, strict=True))
    assert representation_shift(x, y) == pytest.approx(math.sqrt(moved / sum(a * a for p in x for a in p)))
    assert representation_shift(scale * x, scale * y) == pytest.approx(representation_shift(x, y))
    assert representation_shift(x, x) == 0
    assert representation_shift(x, scale * x) == pytest.approx(abs(scale - 1), abs=1e-12)
    assert representation_shift(x, 0 * x) == 1
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(x.shape[1],) * 2))[0]
    assert representation_shift(x @ rotation, y @ rotation) == pytest.approx(representation_shift(x, y))
    assert representation_shift(x, x @ rotation) <= 2 + 1e-12


def test_shift_away_from_nothing_is_undefined():
    assert np.isnan(representation_shift(np.zeros((2, 2)), np.ones((2, 2))))


def test_means_leave_padding_out_on_either_side():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    expected = torch.stack([hidden[0, 2:].mean(0), hidden[1, :3].mean(0)]).double()
    torch.testing.assert_close(mean_of_tokens(hidden.double(), mask), expected)
    torch.testing.assert_close(mean_of_tokens(hidden.double(), None), hidden.mean(1).double())


BACKBONES = {
    "llama": lambda base, inputs: base.model(**inputs).last_hidden_state,
    "gpt2": lambda base, inputs: base.transformer(**inputs).last_hidden_state,
    "bert": lambda base, inputs: base.bert(**inputs).last_hidden_state,
    "deberta": lambda base, inputs: base.deberta(**inputs).last_hidden_state,
    "t5": lambda base, inputs: base.decoder(
        inputs["decoder_input_ids"],
        encoder_hidden_states=base.encoder(inputs["input_ids"], inputs["attention_mask"])[0],
        encoder_attention_mask=inputs["attention_mask"],
    )[0],
}


@torch.no_grad()
def naive_features(name, base, batches):
    rows = []
    for batch in batches:
        hidden = BACKBONES[name](base, without_labels(batch))
        kept = batch["labels"] != -100 if name == "t5" else batch["attention_mask"].bool()
        rows += [row[mask].mean(0) for row, mask in zip(hidden, kept, strict=True)]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("name", BACKBONES)
def test_models_are_measured_at_their_backbones(name):
    batches = [inputs_for(name, rows=4, seed=1), inputs_for(name, rows=7, length=9, seed=2)]
    before = naive_features(name, make(name), batches)
    model = get_balora_model(make(name), BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    start = measure_representation_shift(model, batches)
    assert start["representation_shift"] < 1e-5
    assert start["linear_cka"] == pytest.approx(1, abs=1e-6)

    train_steps(model, batches[0])
    model.train()
    found = measure_representation_shift(model, batches)
    assert model.training
    model.eval()
    after = naive_features(name, model.get_base_model(), batches)
    assert found["representation_shift"] == pytest.approx(representation_shift(before, after), rel=1e-3)
    assert found["representation_shift"] > 0.01
    assert found["linear_cka"] == pytest.approx(linear_cka(before, after), abs=1e-4)
    assert found["linear_cka"] < 1 - 1e-5


def test_a_real_model_moves_as_it_is_trained(model, tokenizer):
    adapted = get_balora_model(model, BALoraConfig(method="ba-lora", r=4, lora_alpha=4, target_modules="all-linear"))
    texts = ["Once upon a time there was a cat.", "The sun", "Tom ran to the park and saw a big red ball."]
    batch = dict(tokenizer(texts, padding=True, padding_side="right", return_tensors="pt"))
    assert batch["attention_mask"].sum() < batch["attention_mask"].numel()
    shifts = [measure_representation_shift(adapted, [batch])["representation_shift"]]
    for _ in range(2):
        train_steps(adapted, {**batch, "labels": batch["input_ids"]}, steps=2, lr=3e-3)
        shifts.append(measure_representation_shift(adapted, [batch])["representation_shift"])
    assert shifts[0] < 1e-4 < shifts[1] < shifts[2]
    alone = {name: value[1:2][:, batch["attention_mask"][1].bool()] for name, value in batch.items()}
    with_padding = measure_representation_shift(adapted, [{name: value[1:2] for name, value in batch.items()}])
    assert measure_representation_shift(adapted, [alone])["representation_shift"] == pytest.approx(
        with_padding["representation_shift"], rel=1e-3
    )
