"""Maps and confusion matrices side by side: every example drawn, every count written, nothing on top of another."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from balora.report.imbalance import confusion_figure, tsne_figure

NAMES = ["entailment", "neutral", "contradiction"]


def clusters(counts, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return generator.normal(size=(len(labels), 2)) + 4 * labels[:, None], labels


def drawn(figure):
    FigureCanvasAgg(figure).draw()
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


def test_every_example_is_drawn_and_the_scarcest_class_last():
    panels = {"balanced": clusters([40, 40, 40]), "100:10:1": clusters([100, 10, 2])}
    axes = drawn(tsne_figure(panels, NAMES))
    assert [a.get_title(loc="left") for a in axes] == list(panels)
    for panel, (points, labels) in zip(axes, panels.values(), strict=True):
        offsets = [collection.get_offsets() for collection in panel.collections]
        assert sum(map(len, offsets)) == len(points)
        assert len(offsets[-1]) == np.bincount(labels).min()
    assert [text.get_text() for text in axes[0].figure.legends[0].get_texts()] == NAMES


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_panels_wrap_and_their_titles_keep_apart(count):
    panels = {f"some method with a name {i}\nsilhouette 0.{i}": clusters([20, 5], seed=i) for i in range(count)}
    axes = drawn(tsne_figure(panels, ["no $x$", "_yes"]))
    assert len(axes) == count
    boxes = [a.title.get_window_extent() for a in axes] + [a._left_title.get_window_extent() for a in axes]
    boxes = [box for box in boxes if box.width > 1]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_counts_are_written_and_shaded_by_their_true_class():
    matrix = np.array([[90, 10, 0], [1, 8, 1], [0, 0, 0]])
    (panel,) = drawn(confusion_figure({"ba-lora": matrix}, NAMES))
    written = [text.get_text() for text in panel.texts]
    assert written == [str(count) for count in matrix.ravel()]
    shares = panel.collections[0].get_array().reshape(3, 3)
    np.testing.assert_allclose(shares, [[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0, 0]])


def test_a_matrix_a_class_a_thousand_examples():
    figure = confusion_figure({f"m{i}": np.full((2, 2), 1234) for i in range(4)}, ["a", "b"])
    assert len(drawn(figure)) == 4
