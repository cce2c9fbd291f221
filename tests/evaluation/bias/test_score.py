"""The Bias Score against naive loops and its own promises."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.evaluation.bias.bias_score import (
    classifier_bias_score,
    mean_with_interval,
    preference,
    preference_scores,
    total_variation,
)
from balora.utils.bootstrap import bootstrap_interval

ODDS = st.lists(st.floats(-50, 50), min_size=1, max_size=12).map(np.array)


@st.composite
def two_sides(draw, most_classes=5):
    """Distributions `(N, D)` of both sides of N pairs."""
    n, d = draw(st.integers(1, 8)), draw(st.integers(2, most_classes))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    return generator.dirichlet(np.full(d, 0.4), n), generator.dirichlet(np.full(d, 0.4), n)


def naive_distance(p, q):
    """The largest difference in probability over all events, one by one."""
    d = len(p)
    events = [[c for c in range(d) if code >> c & 1] for code in range(2**d)]
    return max(sum(p[c] for c in event) - sum(q[c] for c in event) for event in events)


@settings(max_examples=25)
@given(two_sides())
def test_total_variation_is_the_largest_difference_over_events(sides):
    p, q = sides
    expected = [naive_distance(*pair) for pair in zip(p, q, strict=True)]
    np.testing.assert_allclose(total_variation(p, q), expected, atol=1e-12)


@settings(max_examples=25)
@given(two_sides(2))
def test_of_two_classes_it_is_the_counterfactual_token_fairness_gap(sides):
    p, q = sides
    gap = sum(abs(a[1] - b[1]) for a, b in zip(p, q, strict=True)) / len(p)
    assert classifier_bias_score(p, q)["bias_score"] == pytest.approx(gap, abs=1e-12)


@settings(max_examples=25)
@given(ODDS)
def test_one_definition_covers_language_models_and_classifiers(log_odds):
    """A language model is a classifier of two classes, this side or the other one."""
    chosen = [
        [math.exp(min(x, 0)) / (1 + math.exp(-abs(x))), math.exp(min(-x, 0)) / (1 + math.exp(-abs(x)))]
        for x in log_odds
    ]
    answer = np.array(chosen)
    as_classifier = classifier_bias_score(answer, answer[:, ::-1])
    scores = preference_scores(log_odds)
    for name in ("bias_score", "bias_score_low", "bias_score_high", "pairs"):
        assert scores[name] == pytest.approx(as_classifier[name], abs=1e-12)
    np.testing.assert_allclose(preference(log_odds), answer[:, 0] - answer[:, 1], atol=1e-12)


@settings(max_examples=25)
@given(ODDS)
def test_exchanging_sides_keeps_the_score_and_turns_its_direction(log_odds):
    scores, exchanged = preference_scores(log_odds), preference_scores(-log_odds)
    for name in ("bias_score", "bias_score_low", "bias_score_high", "mean_abs_log_odds", "pairs"):
        assert exchanged[name] == scores[name]
    assert exchanged["directed_bias"] == pytest.approx(-scores["directed_bias"], abs=1e-15)
    assert exchanged["stereotype_share"] == pytest.approx(1 - scores["stereotype_share"], abs=1e-12)
    assert exchanged["mean_log_odds"] == -scores["mean_log_odds"]
    assert 0 <= scores["bias_score"] <= 1
    assert abs(scores["directed_bias"]) <= scores["bias_score"] + 1e-15


@settings(max_examples=25)
@given(two_sides())
def test_a_classifier_s_score_does_not_depend_on_which_side_is_first(sides):
    p, q = sides
    assert classifier_bias_score(p, q) == classifier_bias_score(q, p)
    assert 0 <= classifier_bias_score(p, q)["bias_score"] <= 1
    assert classifier_bias_score(p, p)["bias_score"] == 0
    assert classifier_bias_score(p, p)["bias_score_high"] == 0


def test_ends_of_the_scales():
    none = preference_scores(np.zeros(5))
    assert none["bias_score"] == none["bias_score_high"] == none["directed_bias"] == none["mean_abs_log_odds"] == 0
    assert none["stereotype_share"] == 0.5
    assert preference_scores(np.full(3, 1e4)) == {
        **dict.fromkeys(("bias_score", "bias_score_low", "bias_score_high"), 1),
        **dict.fromkeys(("directed_bias", "directed_bias_low", "directed_bias_high"), 1),
        **dict.fromkeys(("stereotype_share", "stereotype_share_low", "stereotype_share_high"), 1),
        **dict.fromkeys(("mean_log_odds", "mean_abs_log_odds"), 1e4),
        "pairs": 3,
    }
    # Preferences of ¾ to ¼, one each way: half the probability is moved, in no direction.
    evened = preference_scores(np.log([3, 1 / 3]))
    assert evened["bias_score"] == pytest.approx(0.5)
    assert evened["directed_bias"] == pytest.approx(0)
    assert evened["stereotype_share"] == 0.5


def test_it_is_twice_the_pronoun_skew_of_the_controlled_world():
    """Which is the mean |p(he)/(p(he) + p(she)) − ½| over prompts."""
    he, she = np.array([0.2, 0.05, 0.3]), np.array([0.1, 0.4, 0.3])
    skew = np.abs(he / (he + she) - 0.5).mean()
    assert preference_scores(np.log(he / she))["bias_score"] == pytest.approx(2 * skew)


@settings(max_examples=10)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.integers(0, 5))
def test_the_interval_is_that_of_a_plain_bootstrap(values, seed):
    low, high = bootstrap_interval(lambda drawn: np.array(values)[drawn].mean(1), len(values), seed=seed)
    again = mean_with_interval("mean", values, seed=seed)
    assert again == {
        "mean": pytest.approx(np.mean(values)),
        "mean_low": pytest.approx(low, abs=1e-12),
        "mean_high": pytest.approx(high, abs=1e-12),
    }
    drawing = random.Random(seed)
    means = sorted(sum(drawing.choice(values) for _ in values) / len(values) for _ in range(2000))
    spread = np.std(values) / math.sqrt(len(values))
    # Another generator's resamples: ends of the same distribution, as far as 2000 draws of a few values tell.
    assert low == pytest.approx(means[50], abs=0.6 * spread + 1e-9)
    assert high == pytest.approx(means[1949], abs=0.6 * spread + 1e-9)


def test_clusters_are_resampled_whole():
    values, clusters = [0, 0, 0, 1, 1, 1, 0.5], ["a", "a", "a", "b", "b", "b", "c"]
    found = mean_with_interval("mean", values, clusters=clusters)
    assert found["mean"] == pytest.approx(0.5)
    assert found["mean_low"] == 0
    assert found["mean_high"] == 1
    alone = mean_with_interval("mean", values)
    assert alone["mean_low"] > 0
    assert alone["mean_high"] < 1
    assert mean_with_interval("mean", values, clusters=range(7)) == alone


def test_a_normal_sample_s_interval_is_about_two_standard_errors():
    values = np.random.default_rng(3).normal(size=400)
    found = mean_with_interval("mean", values)
    error = values.std() / 20
    assert found["mean_high"] - found["mean_low"] == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert mean_with_interval("mean", values, seed=1) != found
    assert mean_with_interval("mean", values) == found
