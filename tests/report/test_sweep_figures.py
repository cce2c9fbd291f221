"""A line per method through its means, over numbers or names."""

import numpy as np
import pytest

from balora.report import Run
from balora.report.figures.sweep import sweep_figure


def run(label, seed, accuracy):
    return Run(label, seed, "t", {"accuracy": accuracy}, 1.0, 1.0, 1)


def lines_of(axes):
    return [np.array(line.get_xydata()) for line in axes.get_lines()]


def test_means_over_seeds_are_drawn_at_their_values():
    points = {f"{m} r={r}": (m, {"r": r}) for m in ("lora", "pissa") for r in (1, 8, 64)}
    runs = [
        run(label, seed, r / 100 + seed / 10) for label, (_, v) in points.items() for seed in (0, 1) for r in [v["r"]]
    ]
    axes = sweep_figure(runs, points, "r", ["accuracy"]).axes[0]
    lora, pissa = lines_of(axes)
    np.testing.assert_allclose(lora, [[1, 0.06], [8, 0.13], [64, 0.69]])
    np.testing.assert_allclose(lora, pissa)
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "8", "64"]


@pytest.mark.parametrize(("values", "scale"), [((1, 2), "linear"), (("constant", "cosine"), "linear")])
def test_small_ranges_are_linear_and_names_are_in_order(values, scale):
    points = {f"lora k={v}": ("lora", {"k": v}) for v in values}
    axes = sweep_figure([run(label, 0, 0.5) for label in points], points, "k", ["accuracy"]).axes[0]
    assert axes.get_xscale() == scale
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(value) for value in values]


def test_other_swept_settings_make_separate_lines():
    points = {f"lora r={r} k={k}": ("lora", {"r": r, "k": k}) for r in (1, 2) for k in (3, 4)}
    figure = sweep_figure([run(label, 0, 0.5) for label in points], points, "r", ["accuracy"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lora k=3", "lora k=4"]
