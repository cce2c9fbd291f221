import math

import pytest

from balora.report import PRETRAINED, Run, summarize


def run(method, seed, task="mrpc", **metrics):
    return Run(method, seed, task, metrics, 10.0 + seed, 500.0, 100)


def test_mean_and_sample_standard_deviation_by_hand():
    (summary,) = summarize([run("lora", seed, accuracy=value) for seed, value in ((1, 0.6), (2, 0.7), (3, 0.8))])
    (row,) = summary.methods
    accuracy = row.metrics["accuracy"]
    assert (row.runs, accuracy.n) == (3, 3)
    assert accuracy.mean == pytest.approx(0.7)
    assert accuracy.sd == pytest.approx(0.1)  # sqrt((0.01 + 0 + 0.01) / 2)
    assert row.train_seconds.mean == pytest.approx(12.0)
    assert row.train_seconds.sd == pytest.approx(1.0)


def test_methods_and_metrics_keep_the_order_of_first_appearance():
    made = [run(PRETRAINED, 1, f1=0.1), run("z", 1, accuracy=0.5), run("a", 1, accuracy=0.5), run("z", 2, f1=0.3)]
    (summary,) = summarize(made)
    assert [row.method for row in summary.methods] == [PRETRAINED, "z", "a"]
    assert summary.metrics == ("f1", "accuracy")


def test_a_single_seed_has_no_spread_and_proves_nothing():
    (summary,) = summarize([run("lora", 1, accuracy=0.7), run("balora", 1, accuracy=0.9)])
    assert summary.methods[0].metrics["accuracy"].sd is None
    best = summary.best["accuracy"]
    assert (best.method, best.rivals, best.spread_known) == ("balora", (), False)


def test_missing_and_nan_values_are_left_out_of_the_mean():
    (summary,) = summarize(
        [run("lora", 1, f1=0.4), run("lora", 2, f1=math.nan), run("lora", 3), run("pissa", 1, f1=math.nan)]
    )
    lora, pissa = summary.methods
    assert (lora.metrics["f1"].mean, lora.metrics["f1"].n, lora.runs) == (0.4, 1, 3)
    assert pissa.metrics == {}
    assert summary.best == {}


def test_best_follows_the_direction_and_excludes_the_pretrained_model():
    made = [
        run(PRETRAINED, 1, accuracy=1.0, perplexity=1.0, novelty=9.0),
        *(run("lora", seed, accuracy=0.70 + 0.01 * seed, perplexity=20.0 + seed, novelty=1.0) for seed in (1, 2)),
        *(run("balora", seed, accuracy=0.80 + 0.01 * seed, perplexity=10.0 + seed, novelty=2.0) for seed in (1, 2)),
    ]
    (summary,) = summarize(made)
    assert summary.best["accuracy"].method == "balora"
    assert summary.best["perplexity"].method == "balora"
    assert summary.best["accuracy"].rivals == ()
    assert summary.best["accuracy"].spread_known
    assert "novelty" not in summary.best  # its better direction is unknown


@pytest.mark.parametrize(("gap", "rivals"), [(0.02, ("lora",)), (0.04, ())])
def test_rivals_are_methods_with_overlapping_intervals(gap, rivals):
    # Each method's two seeds lie 0.02 apart: sd = 0.02 / sqrt(2) = 0.0141, so intervals touch up to a gap of 0.0283.
    made = [run("lora", seed, accuracy=0.7 + 0.02 * seed) for seed in (0, 1)]
    made += [run("balora", seed, accuracy=0.7 + gap + 0.02 * seed) for seed in (0, 1)]
    (summary,) = summarize(made)
    assert summary.best["accuracy"].method == "balora"
    assert summary.best["accuracy"].rivals == rivals


def test_tasks_are_never_averaged_together():
    first, second = summarize([run("lora", 1, "mrpc", f1=0.8), run("lora", 1, "cola", matthews=0.4)])
    assert (first.task, first.metrics, second.task, second.metrics) == ("mrpc", ("f1",), "cola", ("matthews",))
