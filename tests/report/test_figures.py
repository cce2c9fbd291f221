import itertools
import math
import warnings
from xml.etree import ElementTree

import pytest

from balora.report import PRETRAINED, Run, figure_svg, loss_figure, save_figure, tradeoff_figure
from balora.report.figures.classification import violin_figure
from balora.report.style import COLOURS, method_styles

ODD_NAMES = ["_hidden", "$x_1", r"a $\bad{$ b", "<script>alert(1)</script>", "full & fine"]


def svg_texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def odd_study():
    made = [
        Run(name, seed, "t", {"accuracy": 0.8 + index / 500, "kl_to_base": 0.5 + seed / 100}, 1.0, 1.0, 1)
        for index, name in enumerate(ODD_NAMES)
        for seed in (1, 2)
    ]
    return made, {run.id: [{"step": step, "loss": 1 / step} for step in (1, 2, 3)] for run in made}


def test_tradeoff_names_every_method_and_both_directions(runs):
    texts = svg_texts(figure_svg(tradeoff_figure(runs, "accuracy", "kl_to_base"), "a"))
    for name in ("lora", "pissa", "balora", f"{PRETRAINED} (start)"):
        assert texts.count(name) == 1
    assert "↑ accuracy, higher is better" in texts
    assert "← kl_to_base, lower is better" in texts


def test_tradeoff_draws_each_seed_and_the_mean(runs):
    axes = tradeoff_figure(runs, "accuracy", "kl_to_base").axes[0]
    offsets = [collection.get_offsets().tolist() for collection in axes.collections]
    assert offsets[0] == [[0.61, 0.812], [0.53, 0.846]]
    assert offsets[1] == [pytest.approx([0.57, 0.829])]
    assert offsets[-1] == [[0.0, 0.684]]


def test_labels_overlap_neither_each_other_nor_the_edge():
    made = [Run(PRETRAINED, 1, "t", {"accuracy": 0.3, "kl_to_base": 0.0}, 0.0, 0.0, 0)]
    for index, name in enumerate(("full fine-tuning", "lora", "pissa", "dora + consistency", "balora", "milora")):
        for seed in (1, 2, 3):
            metrics = {"accuracy": 0.82 + 0.004 * index, "kl_to_base": 0.5 + 0.01 * ((index * seed) % 5)}
            made.append(Run(name, seed, "t", metrics, 1.0, 1.0, 1))
    axes = tradeoff_figure(made, "accuracy", "kl_to_base").axes[0]
    boxes = [note.get_window_extent() for note in axes.texts]
    assert len(boxes) == 7
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    inside = axes.get_window_extent()
    assert all(inside.contains(*corner) for box in boxes for corner in box.corners())


def test_tradeoff_needs_a_fine_tuned_run_with_both_metrics(runs):
    assert tradeoff_figure(runs, "accuracy", "skew") is None
    assert tradeoff_figure(runs[:1], "accuracy", "kl_to_base") is None
    broken = Run("broken", 42, "mrpc", {"accuracy": math.nan, "kl_to_base": 0.1}, 1.0, 1.0, 1)
    texts = svg_texts(figure_svg(tradeoff_figure([*runs, broken], "accuracy", "kl_to_base"), "a"))
    assert "broken" not in texts


def test_curves_have_a_panel_per_component_and_a_name_per_method(runs, histories):
    figure = loss_figure(runs, histories)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["loss", "loss_task", "loss_consistency", "loss_diversity", "loss_spectral", "eval_loss"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 1, 1, 1, 1, 3]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    texts = svg_texts(figure_svg(figure, "c"))
    assert [name for name in texts if name in ("lora", "pissa", "balora")] == ["lora", "pissa", "balora"]


def test_curves_show_the_mean_over_seeds_and_skip_what_is_not_a_number():
    made = [Run("lora", seed, "t", {}, 1.0, 1.0, 1) for seed in (1, 2)]
    logs = {
        "t-lora-1": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}, {"step": 3, "loss": math.nan}],
        "t-lora-2": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}],
        "t-unknown-1": [{"step": 1, "loss": 9.0}],
    }
    (line,) = loss_figure(made, logs).axes[0].lines
    assert line.get_xydata().tolist() == [[1.0, 1.5], [2.0, 0.5]]


def test_no_curves_without_losses(runs):
    assert loss_figure(runs, {}) is None
    assert loss_figure(runs, {"mrpc-lora-42": [{"step": 1, "learning_rate": 0.1}]}) is None


def test_names_with_special_characters_are_drawn_verbatim():
    made, logs = odd_study()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svgs = [
            figure_svg(tradeoff_figure(made, "accuracy", "kl_to_base"), "a"),
            figure_svg(loss_figure(made, logs), "b"),
        ]
    for svg in svgs:
        assert "<script" not in svg
        assert set(ODD_NAMES) <= set(svg_texts(svg))


def test_svg_is_the_same_every_time_and_shares_no_ids(runs, histories):
    def ids(svg):
        return [element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")]

    def draw():
        return figure_svg(tradeoff_figure(runs, "accuracy", "kl_to_base"), "a")

    assert draw() == draw()
    together = ids(draw()) + ids(figure_svg(loss_figure(runs, histories), "b"))
    assert len(together) == len(set(together)) > 0


def test_figures_are_saved_by_suffix(runs, tmp_path):
    figure = tradeoff_figure(runs, "accuracy", "kl_to_base")
    save_figure(figure, tmp_path / "docs" / "figure.png")
    save_figure(figure, tmp_path / "docs" / "figure.svg")
    assert (tmp_path / "docs" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "docs" / "figure.svg").read_text()


def test_styles_follow_order_and_stay_distinct_beyond_the_palette():
    made = [Run(PRETRAINED, 1, "t", {}, 0.0, 0.0, 0), *(Run(f"m{i}", 1, "t", {}, 0.0, 0.0, 0) for i in range(12))]
    styles = method_styles(made)
    assert [styles[f"m{i}"][0] for i in range(len(COLOURS))] == list(COLOURS)
    assert len(set(styles.values())) == 12


def test_a_violin_for_each_sample_with_the_share_beyond_the_middle():
    samples = {"no $1": [0.1, 0.2, 0.9, 0.8], "one value": [0.7], "all alike": [0.3] * 5}
    figure = violin_figure(samples, "probability", middle=0.5)
    figure.canvas.draw()
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(samples)
    assert [text.get_text() for text in axes.texts] == ["50%", "100%", "0%"]
