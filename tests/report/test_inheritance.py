"""Lines through means by what was planted; who is dominated by whom."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.report import PRETRAINED, Run
from balora.report.figures.inheritance import Axis, inheritance_figure, pareto_figure, undominated


def run(method, seed, **metrics):
    return Run(method, seed, "t", metrics, 1.0, 1.0, 1)


def lines_of(axes):
    return [np.array(line.get_xydata()) for line in axes.get_lines()]


def test_a_panel_has_every_method_s_means_and_the_pretrained_line():
    levels = {
        level: [
            run(PRETRAINED, 1, skew=level / 2),
            run("lora", 1, skew=level),
            run("lora", 2, skew=level + 2),
            run("$k_1$", 1, skew=math.nan if level == 4 else 7),
        ]
        for level in (1, 4, 64)
    }
    few = {level: [run("lora", 1, noise_share=level)] for level in (0.0, 0.1)}
    figure = inheritance_figure([Axis("imbalance", "skew", levels), Axis("noise", "noise_share", few)])
    first, second = figure.axes
    lora, other, pretrained = lines_of(first)
    np.testing.assert_allclose(lora, [[1, 2], [4, 5], [64, 65]])
    np.testing.assert_allclose(other, [[1, 7], [64, 7]])  # a level without a number is left out
    np.testing.assert_allclose(pretrained, [[1, 0.5], [4, 2], [64, 32]])
    assert (first.get_xscale(), second.get_xscale()) == ("log", "linear")
    assert [text.get_text() for text in second.get_xticklabels()] == ["0", "0.1"]
    assert (first.get_xlabel(), second.get_title(loc="left")) == ("imbalance", "noise_share ↓")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lora", "$k_1$", PRETRAINED]
    figure.draw_without_rendering()


def test_pareto_front_is_drawn_as_steps():
    runs = [run(PRETRAINED, 1, accuracy=0.0, perplexity=1.0, skew=0.4)]
    found = {"a": (0.9, 4.0, 0.4), "b": (0.8, 2.0, 0.4), "c": (0.7, 3.0, 0.1), "d": (0.6, 3.5, 0.2)}
    for method, (accuracy, perplexity, skew) in found.items():
        for seed, off in ((1, -0.01), (2, 0.01)):
            runs.append(run(method, seed, accuracy=accuracy + off, perplexity=perplexity, skew=skew))
    runs.append(run("broken", 1, accuracy=math.nan, perplexity=9.0, skew=0.0))
    figure = pareto_figure(runs, "accuracy", ("perplexity", "skew"))
    front, start = lines_of(figure.axes[0])
    np.testing.assert_allclose(front, [[2, 0.8], [4, 0.9]])  # c has less accuracy than b at a higher price
    np.testing.assert_allclose(start[:, 0], [1, 1])
    np.testing.assert_allclose(lines_of(figure.axes[1])[0], [[0.1, 0.7], [0.4, 0.9]])
    large = [marks for marks in figure.axes[0].collections if marks.get_sizes()[0] > 50]
    np.testing.assert_allclose([marks.get_offsets()[0] for marks in large], [[4, 0.9], [2, 0.8], [3, 0.7], [3.5, 0.6]])
    white = [tuple(marks.get_facecolor()[0]) == (1, 1, 1, 1) for marks in large]
    assert white == [False, False, False, True]  # d is worse than c in all three; c is best in one
    figure.draw_without_rendering()


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=7))
def test_undominated_equals_the_definition(points):
    scores = {str(place): point for place, point in enumerate(points)}
    found = set(undominated(scores))
    assert found
    for name, own in scores.items():
        beaten = any(
            all(b >= a for a, b in zip(own, other, strict=True)) and other != own for other in scores.values()
        )
        assert (name in found) == (not beaten)
    assert all(
        scores[a] == scores[b] or not all(x >= y for x, y in zip(scores[a], scores[b], strict=True))
        for a, b in itertools.permutations(found, 2)
    )


@pytest.mark.parametrize("runs", [[], [run(PRETRAINED, 1, accuracy=0.0, perplexity=1.0)]])
def test_no_figure_without_fine_tuned_methods(runs):
    assert pareto_figure(runs, "accuracy", ("perplexity",)) is None
