import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from balora.audit.metrics import Metric, measured, metric_of
from balora.evaluation.bias.bias_score import mean_with_interval
from balora.evaluation.metric import Estimate, Units, clustered, mean, ratio, ratio_of_sums
from balora.utils.bootstrap import RESAMPLES

numbers = st.floats(-5, 5, allow_subnormal=False)


def naive(size: int, value, seed: int) -> list[float]:
    """A bootstrap of one resample after the other, `value` taking the units that were drawn."""
    drawn = np.random.default_rng(seed).integers(size, size=(RESAMPLES, size))
    return np.percentile([value(row.tolist()) for row in drawn], (2.5, 97.5)).tolist()


@settings(max_examples=5, deadline=None)
@given(values=arrays(float, st.integers(2, 9), elements=numbers), seed=st.integers(0, 3))
def test_a_mean_has_the_interval_of_a_naive_bootstrap(values, seed):
    figure = measured("x", mean(values), unit="texts", seed=seed)
    expected = naive(len(values), lambda drawn: sum(values[i] for i in drawn) / len(drawn), seed)
    assert figure.tuned.value == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert [figure.tuned.low, figure.tuned.high] == pytest.approx(expected, abs=1e-9)
    assert (figure.units, figure.base, figure.change) == (len(values), None, None)


@settings(max_examples=5, deadline=None)
@given(
    rows=arrays(float, st.tuples(st.integers(2, 8), st.just(3)), elements=st.floats(0.1, 4)), seed=st.integers(0, 3)
)
def test_a_change_is_of_both_on_the_same_resamples(rows, seed):
    after, before, sizes = rows.T
    of = lambda sums: np.exp(ratio_of_sums(sums))  # noqa: E731
    units = [Units(np.stack([side, sizes], 1), of) for side in (after, before)]
    figure = measured("x", *units, unit="texts", seed=seed)

    def value(side, drawn):
        return math.exp(sum(side[i] for i in drawn) / sum(sizes[i] for i in drawn))

    everything = range(len(rows))
    assert figure.change.value == pytest.approx(
        value(after, everything) - value(before, everything), rel=1e-9, abs=1e-9
    )
    assert figure.change.value == figure.tuned.value - figure.base.value
    for estimate, expected in (
        (figure.tuned, naive(len(rows), lambda i: value(after, i), seed)),
        (figure.base, naive(len(rows), lambda i: value(before, i), seed)),
        (figure.change, naive(len(rows), lambda i: value(after, i) - value(before, i), seed)),
    ):
        assert [estimate.low, estimate.high] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_change_that_all_units_share_has_no_noise_however_noisy_the_two_are():
    before = np.random.default_rng(0).normal(0, 100, 30)
    figure = measured("x", mean(before + 0.5), mean(before), unit="texts")
    assert figure.base.high - figure.base.low > 20
    assert (figure.change.low, figure.change.high) == pytest.approx((0.5, 0.5))
    assert figure.changed


def test_noise_alone_is_a_change_about_one_time_in_twenty():
    def found(trial, shift):
        generator = np.random.default_rng(trial)
        before = generator.normal(0, 3, 40)
        after = before + generator.normal(shift, 1, 40)
        return measured("x", mean(after), mean(before), unit="texts").changed

    assert 2 <= sum(found(trial, 0.0) for trial in range(100)) <= 12
    assert (
        sum(found(trial, 0.6) for trial in range(20)) >= 17
    )  # nearly four standard errors of a change, and one of a side


@pytest.mark.parametrize(("low", "high", "changed"), [(0.1, 0.2, True), (-2, -1, True), (-1, 1, False), (0, 1, False)])
def test_a_change_is_one_where_its_interval_leaves_out_0(low, high, changed):
    one = Estimate(1.0, 0.0, 2.0)
    assert Metric("x", "", one, one, Estimate(0.5, low, high), 5, "texts").changed is changed
    assert not Metric("x", "", one, None, None, 5, "texts").changed


@settings(max_examples=8, deadline=None)
@given(values=arrays(float, 12, elements=numbers), places=st.lists(st.sampled_from("abcde"), min_size=12, max_size=12))
def test_rows_of_a_cluster_are_drawn_together(values, places):
    figure = measured("x", mean(values, places), unit="templates", seed=3)
    expected = mean_with_interval("x", values, clusters=places, seed=3)
    assert figure.units == len(set(places))
    assert figure.tuned.value == pytest.approx(expected["x"], abs=1e-9)
    if len(set(places)) == 1:
        assert math.isnan(figure.tuned.low)
        return
    assert [figure.tuned.low, figure.tuned.high] == pytest.approx([expected["x_low"], expected["x_high"]], abs=1e-9)


def test_columns_of_a_cluster_are_summed():
    units = clustered(np.array([[1.0, 1], [2, 1], [4, 1]]), ratio_of_sums, ["b", "a", "b"])
    assert units.columns.tolist() == [[2, 1], [5, 2]]
    assert clustered(np.ones((3, 2)), ratio_of_sums).columns.shape == (3, 2)


def test_one_unit_has_no_interval():
    figure = measured("x", mean([3.0]), mean([1.0]), unit="texts")
    for estimate, value in ((figure.tuned, 3), (figure.base, 1), (figure.change, 2)):
        assert estimate.value == value
        assert np.isnan([estimate.low, estimate.high]).all()
    assert not figure.changed


def test_what_is_no_number_has_no_interval_and_is_no_change():
    figure = measured("x", ratio(np.zeros(4), np.zeros(4)), mean(np.ones(4)), unit="texts")
    assert np.isnan([figure.tuned.value, figure.tuned.low, figure.change.value]).all()
    assert not figure.changed
    infinite = measured("x", Units(np.ones((4, 1)), lambda sums: sums[:, 0] * np.inf), unit="texts")
    assert (infinite.tuned.value, str(infinite.tuned.low)) == (math.inf, "nan")


estimates = st.builds(Estimate, *[st.floats(allow_infinity=False)] * 3)


@given(
    figure=st.builds(
        Metric,
        st.text(),
        st.text(),
        estimates,
        st.none() | estimates,
        st.none() | estimates,
        st.integers(1),
        st.text(),
    )
)
def test_json_gives_a_figure_back(figure):
    text = json.dumps(figure.as_json(), allow_nan=False)  # what is no number is valid JSON all the same
    assert repr(metric_of(json.loads(text))) == repr(figure)


def test_what_is_infinite_comes_back_as_no_number():
    figure = Metric("x", "", Estimate(math.inf, 0, 1), None, None, 2, "texts")
    assert math.isnan(metric_of(json.loads(json.dumps(figure.as_json(), allow_nan=False))).tuned.value)
