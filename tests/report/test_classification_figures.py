"""Maps of classes and confusion matrices: what is drawn where, and that nothing overlaps."""

import itertools
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from balora.report import figure_svg, save_figure
from balora.report.figures.classification import confusion_figure, tsne_figure
from balora.report.style import COLOURS

NAMES = ["contradiction", "entailment", "neutral"]
ODD_NAMES = ["_hidden", "$x_1", r"a $\bad{$ b"]
COUNTS = np.array([[290, 20, 10], [30, 1300, 17], [60, 200, 73]])


def map_of(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(seed).permutation(len(labels))
    points = np.random.default_rng(seed).normal(size=(len(labels), 2)) + 4 * np.eye(5)[labels, :2]
    return points[order], labels[order]


def maps(number, counts=(10, 100, 30)):
    return {f"method {i}, 100:10:1\nsilhouette 0.{i}, minority 0.{i}": map_of(counts, i) for i in range(number)}


def matrices(number):
    return {f"method {i}": COUNTS + i for i in range(number)}


def drawn(axes):
    """Colour and points of each class, the last drawn last."""
    layers = sorted(axes.collections, key=lambda layer: layer.get_zorder())
    return [(to_hex(layer.get_facecolor()[0][:3]), np.asarray(layer.get_offsets())) for layer in layers]


def svg_texts(figure):
    texts = [e.text for e in ElementTree.fromstring(figure_svg(figure, "a")).iter() if e.tag.endswith("text")]
    return [text for text in texts if text]


def boxes_of_texts(figure):
    """Return the box of every visible text in pixels, except slanted names of neighbours."""
    figure.draw_without_rendering()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        titles = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
        texts += [
            text for text in titles + ticks if text.get_text() and text.get_visible() and not text.get_rotation() % 90
        ]
    return [text.get_window_extent() for text in texts]


def assert_tidy(figure):
    boxes = boxes_of_texts(figure)
    assert len(boxes) > 1
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    extent, canvas = figure.get_tightbbox(), figure.get_size_inches()
    assert extent.x0 >= 0
    assert extent.y0 >= 0
    assert extent.x1 <= canvas[0]
    assert extent.y1 <= canvas[1]
    panels = [axes.get_window_extent() for axes in figure.axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(panels, 2))
    assert not any(text.overlaps(panel) and not is_inside(text, panel) for text in boxes for panel in panels)


def is_inside(box, panel):
    return all(panel.contains(*corner) for corner in box.corners())


# ------------------------------------------------------------------ maps


def test_examples_are_drawn_in_class_colours_rarest_class_last():
    (points, labels) = map_of((10, 100, 30))
    (axes,) = tsne_figure({"a": (points, labels)}, NAMES).axes
    for (colour, offsets), class_id in zip(drawn(axes), (1, 2, 0), strict=True):
        assert colour == COLOURS[class_id].lower()
        np.testing.assert_array_equal(offsets, points[labels == class_id])
    sizes = [layer.get_sizes()[0] for layer in axes.collections]
    assert sizes == sorted(sizes)  # the fewer, the larger


def test_minority_class_can_be_given_for_a_balanced_panel():
    (axes,) = tsne_figure({"a": map_of((30, 20, 30))}, NAMES, minority=2).axes
    assert [colour for colour, _ in drawn(axes)] == [COLOURS[c].lower() for c in (0, 1, 2)]


def test_classes_keep_colour_and_marker_if_a_panel_lacks_a_class():
    full, partial = tsne_figure({"a": map_of((5, 5, 5)), "b": map_of((0, 5, 5))}, NAMES).axes
    kept, shown = (
        {to_hex(layer.get_facecolor()[0][:3]): layer.get_paths()[0].vertices.tolist() for layer in axes.collections}
        for axes in (full, partial)
    )
    assert shown == {colour.lower(): kept[colour.lower()] for colour in COLOURS[1:3]}
    assert len({str(marker) for marker in kept.values()}) == 3


@pytest.mark.parametrize(("number", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (8, 2, 4)])
def test_maps_wrap_into_rows_and_nothing_overlaps(number, rows, columns):
    panels = maps(number)
    figure = tsne_figure(panels, NAMES)
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(panels)
    places = [axes.get_subplotspec() for axes in figure.axes]
    assert {place.rowspan.start for place in places} == set(range(rows))
    assert {place.colspan.start for place in places} == set(range(columns))
    assert all(len(axes.get_xticks()) == len(axes.get_yticks()) == 0 for axes in figure.axes)
    assert_tidy(figure)
    for axes in figure.axes:  # one scale for both axes
        box = axes.get_window_extent()
        assert box.width / np.ptp(axes.get_xlim()) == pytest.approx(box.height / np.ptp(axes.get_ylim()), rel=1e-2)


def test_one_legend_names_every_class_once():
    texts = svg_texts(tsne_figure(maps(3), NAMES))
    assert [texts.count(name) for name in NAMES] == [1, 1, 1]


def test_many_classes_and_long_titles_fit():
    title = "a rather long title that says much more than fits above one small panel"
    assert_tidy(tsne_figure({title: map_of((5, 4, 3)), "b": map_of((2, 2))}, [f"class number {i}" for i in range(8)]))


# ------------------------------------------------------------------ confusion matrices


def test_counts_are_in_the_right_cells_and_shaded_by_share():
    axes = confusion_figure({"a": COUNTS}, NAMES).axes[0]
    written = {tuple(int(p) for p in text.get_position()): text.get_text() for text in axes.texts}
    assert written == {(c, r): f"{COUNTS[r, c]:,}" for r in range(3) for c in range(3)}
    (mesh,) = axes.collections
    np.testing.assert_allclose(
        mesh.get_array().reshape(3, 3), [[n / sum(row) for n in row] for row in COUNTS.tolist()]
    )
    assert mesh.get_clim() == (0, 1)
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    assert axes.yaxis_inverted()  # the first class on top
    assert axes.get_ylabel() == "true"
    assert axes.get_xlabel() == "predicted"


def luminance(colour):
    channels = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]


def test_counts_are_legible_on_every_shade():
    shares = np.arange(0, 101, 5)
    matrix = np.diag(shares) + np.fliplr(np.diag(100 - shares))  # each row's diagonal has another share
    axes = confusion_figure({"a": matrix}, [str(i) for i in range(len(shares))]).axes[0]
    (mesh,) = axes.collections
    for text in axes.texts:
        column, row = (int(p) for p in text.get_position())
        ground = luminance(mesh.cmap(mesh.norm(matrix[row, column] / matrix[row].sum())))
        ink = luminance(to_rgb(text.get_color()))
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 3.5


def test_a_class_without_examples_stays_white():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes = confusion_figure({"a": np.array([[0, 0], [1, 3]])}, ["no", "yes"]).axes[0]
    assert axes.collections[0].get_array().ravel().tolist() == [0, 0, 0.25, 0.75]


@pytest.mark.parametrize("number", [1, 4, 5, 8])
def test_matrices_wrap_into_rows_and_nothing_overlaps(number):
    figure = confusion_figure(matrices(number), NAMES)
    panels = figure.axes[:number]
    assert [axes.get_title(loc="left") for axes in panels] == list(matrices(number))
    assert_tidy(figure)
    counts = [text for axes in panels for text in axes.texts]
    cell = panels[0].get_window_extent().width / 3
    assert max(text.get_window_extent().width for text in counts) < cell
    below = [axes for axes in panels if axes.get_xlabel()]
    assert len(below) == len({axes.get_subplotspec().colspan.start for axes in panels})


# ------------------------------------------------------------------ both


def test_names_with_special_characters_are_drawn_verbatim(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            tsne_figure({"$a_": map_of((3, 4, 5))}, ODD_NAMES),
            confusion_figure({"$a_": COUNTS}, ODD_NAMES),
        ):
            assert {*ODD_NAMES, "$a_"} <= set(svg_texts(figure))
            save_figure(figure, tmp_path / "figure.png")


def test_drawing_is_deterministic():
    for draw in (lambda: tsne_figure(maps(2), NAMES), lambda: confusion_figure(matrices(2), NAMES)):
        assert figure_svg(draw(), "a") == figure_svg(draw(), "a")
