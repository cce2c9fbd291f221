import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.report import PRETRAINED, Difference, Run, paired_difference, sentence
from balora.report.paired import RESAMPLES, interval
from balora.report.verdicts import baseline_of, comparisons


def pair(seed, lora, balora, task="t", metric="accuracy"):
    return [
        Run(name, seed, task, {metric: value}, 1.0, 1.0, 1) for name, value in (("lora", lora), ("balora", balora))
    ]


def naive_interval(strata):
    """The same resampling, one number at a time, with percentiles by linear interpolation between order statistics."""
    generator = np.random.default_rng(0)
    totals = [0.0] * RESAMPLES
    for stratum in strata:
        drawn = generator.integers(len(stratum), size=(RESAMPLES, len(stratum))).tolist()
        for resample, indices in enumerate(drawn):
            totals[resample] += sum(stratum[index] for index in indices) / len(indices)
    means = sorted(total / len(strata) for total in totals)

    def percentile(share):
        place = share * (len(means) - 1)
        below = math.floor(place)
        above = min(below + 1, len(means) - 1)
        return means[below] + (place - below) * (means[above] - means[below])

    return percentile(0.025), percentile(0.975)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=6), min_size=1, max_size=3))
def test_interval_equals_a_naive_bootstrap(strata):
    assert interval(strata) == pytest.approx(naive_interval(strata), abs=1e-12)


def test_the_same_runs_give_the_same_interval(suite, metric_of):
    first, second = (paired_difference(suite, "balora", "lora", metric_of) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("tasks", "seeds", "least", "most"),
    [
        (1, 40, 0.90, 0.98),
        (8, 3, 0.84, 0.94),  # too narrow by sqrt(2 / 3): 2 Φ(1.96 · 0.816) - 1 = 0.89
        (1, 3, 0.68, 0.82),  # from the least to the greatest: misses when all three fall on one side, 1 - 2 / 8
    ],
)
def test_interval_coverage_is_as_documented(tasks, seeds, least, most):
    generator = np.random.default_rng(5)
    truth, studies = 0.3, 300
    held = 0
    for _ in range(studies):
        low, high = interval(generator.normal(truth, 1.0, size=(tasks, seeds)).tolist())
        held += low <= truth <= high
    assert least < held / studies < most


def test_tasks_weigh_the_same_and_are_not_mixed():
    # Within each task all seeds agree, so only resampling over tasks could give the interval a width.
    runs = [run for seed in range(2) for run in pair(seed, 0.5, 0.6, "small")]
    runs += [run for seed in range(10) for run in pair(seed, 0.5, 0.9, "large")]
    found = paired_difference(runs, "balora", "lora", "accuracy")
    assert found.mean == pytest.approx((0.1 + 0.4) / 2)
    assert (found.low, found.high) == pytest.approx((0.25, 0.25))
    assert (found.pairs, found.tasks) == (12, 2)


def test_only_shared_finite_pairs_count():
    runs = pair(1, 0.5, 0.6) + pair(2, math.nan, 0.9) + pair(3, 0.5, 0.7)
    runs.append(Run("balora", 4, "t", {"accuracy": 0.0}, 1.0, 1.0, 1))
    runs.append(Run("balora", 1, "other", {"accuracy": 0.0}, 1.0, 1.0, 1))
    found = paired_difference(runs, "balora", "lora", "accuracy")
    assert (found.mean, found.pairs, found.tasks) == (pytest.approx(0.15), 2, 1)
    assert paired_difference(runs, "balora", "pissa", "accuracy") is None
    assert paired_difference(runs, "balora", "lora", "f1") is None


def test_each_task_has_its_own_metric(suite, metric_of):
    found = paired_difference(suite, "balora", "lora", metric_of)
    by_hand = [
        statistics.fmean(
            a.metrics[metric] - b.metrics[metric]
            for a in suite
            for b in suite
            if (a.method, b.method) == ("balora", "lora") and a.task == b.task == task and a.seed == b.seed
        )
        for task, metric in metric_of.items()
    ]
    assert found.mean == pytest.approx(statistics.fmean(by_hand))
    assert (found.metric, found.better, found.pairs, found.tasks) == ("score", "higher", 9, 3)
    with pytest.raises(BALoraError, match="task_metric: no metric for task 'rte'; it has one for cola, stsb"):
        paired_difference(suite, "balora", "lora", {"cola": "matthews", "stsb": "pearson"})


def test_metrics_of_opposite_directions_are_not_averaged():
    runs = pair(1, 0.5, 0.6) + pair(1, 9.0, 8.0, "world", "perplexity")
    assert paired_difference(runs, "balora", "lora", {"t": "accuracy", "world": "perplexity"}) is None


def test_differences_that_cancel_are_exactly_zero():
    # In binary, (0.6 - 0.5) + (0.7 - 0.8) is not zero, and would count as a lead on every seed.
    assert (0.6 - 0.5) + (0.7 - 0.8) != 0
    runs = [run for seed in (1, 2, 3) for run in pair(seed, 0.5, 0.6, "up") + pair(seed, 0.8, 0.7, "down")]
    found = paired_difference(runs, "balora", "lora", "accuracy")
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert sentence(found).endswith(
        "is within noise, 0.000 better (95 % interval 0.000 to 0.000, 6 pairs over 2 tasks)."
    )


def test_a_task_with_one_pair_leaves_no_interval():
    # Resampling a single pair would return it each time: eight tasks of one seed would look perfectly certain.
    runs = [run for task in "abcdefgh" for run in pair(1, 0.5, 0.5 + ord(task) / 1000, task)]
    found = paired_difference(runs, "balora", "lora", "accuracy")
    assert (found.low, found.high, found.clear, found.pairs) == (None, None, False, 8)
    assert sentence(found).endswith("(8 pairs over 8 tasks; an interval takes two seeds of every task).")
    assert sentence(paired_difference(runs[:2], "balora", "lora", "accuracy")) == (
        "balora is ahead of lora by 0.097 in accuracy (1 pair; an interval takes two seeds)."
    )


AHEAD = Difference("ba-lora", "lora", "accuracy", 0.012, 0.003, 0.021, 24, 8, "higher")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {},
            "ba-lora is ahead of lora by 0.012 in mean accuracy "
            "(95 % interval 0.003 to 0.021, 24 pairs over 8 tasks).",
        ),
        (
            {"tasks": 1, "mean": -0.012, "low": -0.021, "high": -0.003},
            "ba-lora is behind lora by 0.012 in accuracy (95 % interval 0.003 to 0.021, 24 pairs).",
        ),
        (
            {"tasks": 1, "metric": "perplexity", "better": "lower", "mean": -1.25, "low": -2.5, "high": -0.5},
            "ba-lora is ahead of lora by 1.25 in perplexity (95 % interval 0.50 to 2.50, 24 pairs).",
        ),
        (
            {"tasks": 1, "metric": "perplexity", "better": "lower", "mean": 1.25, "low": 0.5, "high": 2.5},
            "ba-lora is behind lora by 1.25 in perplexity (95 % interval 0.50 to 2.50, 24 pairs).",
        ),
        (
            {"tasks": 1, "mean": 0.04, "low": -0.06, "high": 0.15},
            "ba-lora against lora: the difference in accuracy is within noise, 0.040 better "
            "(95 % interval −0.060 to 0.150, 24 pairs).",
        ),
        (
            {"tasks": 1, "metric": "skew", "better": "lower", "mean": 0.04, "low": -0.06, "high": 0.15},
            "ba-lora against lora: the difference in skew is within noise, 0.040 worse "
            "(95 % interval −0.060 to 0.150, 24 pairs).",
        ),
        (
            {"tasks": 1, "metric": "novelty", "better": None, "mean": -0.004, "low": -0.005, "high": -0.003},
            "ba-lora is below lora by 0.0040 in novelty (95 % interval 0.0030 to 0.0050, 24 pairs).",
        ),
        (
            {"tasks": 1, "low": 0.0003, "pairs": 5},
            "ba-lora is ahead of lora by 0.0120 in accuracy (95 % interval 0.0003 to 0.0210), "
            "but 5 pairs are too few to rule out chance.",
        ),
    ],
)
def test_sentence_states_the_better_method(change, text):
    assert sentence(replace(AHEAD, **change)) == text


def test_clear_needs_an_interval_without_zero_and_enough_pairs():
    assert AHEAD.clear
    assert replace(AHEAD, low=-0.021, high=-0.003, mean=-0.012).clear
    assert not replace(AHEAD, low=-0.001).clear
    assert not replace(AHEAD, low=0.0).clear
    assert not replace(AHEAD, pairs=5).clear
    assert replace(AHEAD, pairs=6).clear


def test_every_method_is_compared_with_the_baseline(suite, metric_of, runs):
    assert baseline_of(suite, None) == "lora"
    found = comparisons(suite, metric_of, "lora")
    assert [text.split()[0] for text in found] == ["pissa", "balora"]
    assert found[1].startswith("balora is ahead of lora by 0.019 in mean score (95 % interval ")
    assert [text.split()[0] for text in comparisons(suite, metric_of, "balora")] == ["lora", "pissa"]
    assert len(comparisons(runs, "accuracy", "lora")) == 2
    assert comparisons([run for run in runs if run.seed == 42], "accuracy", "lora") == []
    assert baseline_of([run for run in suite if run.method == PRETRAINED], None) is None
    for wrong in ("dora", PRETRAINED):
        with pytest.raises(BALoraError, match=rf"baseline: '{wrong}' is not .*; use one of lora, pissa, balora"):
            baseline_of(suite, wrong)
