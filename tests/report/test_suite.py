import io
import itertools
import math
import statistics
import warnings
from dataclasses import replace

import pytest
from rich.console import Console

from balora.report import PRETRAINED, Run, figure_svg, markdown_grid, paired_difference, rich_grid, suite_grid
from balora.report.figures.suite import suite_figure
from balora.report.style import figure_style


def cells(grid):
    return {row[0].text: dict(zip(grid.columns, row, strict=True)) for row in grid.rows}


def study(scores, metric="accuracy"):
    """Task to method to the scores of seeds 1, 2, …, as runs."""
    return [
        Run(method, seed, task, {metric: value}, 1.0, 1.0, 5)
        for task, methods in scores.items()
        for method, values in methods.items()
        for seed, value in enumerate(values, start=1)
    ]


def test_suite_grid_has_a_row_per_method_and_a_column_per_task(suite, metric_of):
    grid = suite_grid(suite, metric_of)
    assert grid.columns == (
        "method",
        "cola (matthews ↑)",
        "stsb (pearson ↑)",
        "rte (accuracy ↑)",
        "average ↑",
        "parameters",
    )
    assert [row[0].text for row in grid.rows] == [PRETRAINED, "lora", "pissa", "balora"]
    table = cells(grid)
    scores = {(run.task, run.seed): run.metrics[metric_of[run.task]] for run in suite if run.method == "balora"}
    of_task = [scores["cola", seed] for seed in (1, 2, 3)]
    averages = [statistics.fmean(scores[task, seed] for task in metric_of) for seed in (1, 2, 3)]
    assert table["balora"]["cola (matthews ↑)"].text == (
        f"{statistics.fmean(of_task):.3f} ± {statistics.stdev(of_task):.3f}"
    )
    assert table["balora"]["average ↑"].text == f"{statistics.fmean(averages):.3f} ± {statistics.stdev(averages):.3f}"
    assert table["balora"]["parameters"].text == "1,004"
    assert table[PRETRAINED]["average ↑"].text == f"{(0.1 + 0.56 + 0.3) / 3:.3f}"
    assert table[PRETRAINED]["parameters"].text == "–"


def test_the_best_of_each_column_is_marked():
    runs = study(
        {
            "a": {PRETRAINED: [0.99], "lora": [0.50, 0.52], "balora": [0.60, 0.62]},
            "b": {PRETRAINED: [0.99], "lora": [0.71, 0.75], "balora": [0.70, 0.74]},
        }
    )
    table = cells(suite_grid(runs, "accuracy"))
    marks = {name: [row[title].mark for title in list(row)[1:4]] for name, row in table.items()}
    assert marks == {PRETRAINED: ["", "", ""], "lora": ["", "≈", ""], "balora": ["*", "", "*"]}
    lower = study({"a": {"lora": [5.0, 5.1], "balora": [3.0, 3.1]}}, "perplexity")
    assert cells(suite_grid(lower, "perplexity"))["balora"]["a (perplexity ↓)"].mark == "*"


def test_an_average_needs_every_task_and_its_spread_whole_seeds():
    runs = study(
        {
            "a": {"lora": [0.4, 0.6, 0.8], "pissa": [0.9], "balora": [0.5, 0.7]},
            "b": {"lora": [0.5, 0.7, math.nan], "balora": [math.nan, math.nan]},
        }
    )
    table = cells(suite_grid(runs, "accuracy"))
    # Task means 0.6 and 0.6; the seeds that have both tasks average 0.45 and 0.65.
    assert table["lora"]["average ↑"].text == "0.600 ± 0.141 (2 of 3)"
    assert table["lora"]["b (accuracy ↑)"].text == "0.600 ± 0.141 (2 of 3)"
    assert [table["pissa"][title].text for title in ("b (accuracy ↑)", "average ↑")] == ["–", "–"]
    assert table["balora"]["average ↑"].text == "–"


def test_tasks_with_opposite_directions_have_no_average():
    runs = study({"a": {"lora": [0.5]}}) + study({"b": {"lora": [9.0]}}, "perplexity")
    grid = suite_grid(runs, {"a": "accuracy", "b": "perplexity"})
    assert grid.columns == ("method", "a (accuracy ↑)", "b (perplexity ↓)", "parameters")
    assert "Average" not in grid.legend


def test_markdown_and_terminal_show_the_same_cells(suite, metric_of):
    grid = suite_grid(suite, metric_of)
    lines = markdown_grid(grid).splitlines()
    assert lines[0] == "| method | cola (matthews ↑) | stsb (pearson ↑) | rte (accuracy ↑) | average ↑ | parameters |"
    assert len({line.count("|") for line in lines[:6]}) == 1
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(rich_grid(grid, "[all] tasks"))
    text = console.export_text()
    assert "[all] tasks" in text
    assert max(map(len, text.splitlines())) <= 80
    for row in grid.rows:
        assert all(cell.text.split(" ±")[0] in text for cell in row)


def widths_and_faces(axes):
    """Return each drawn method's whisker ends, and if its mark is filled."""
    whiskers, marks = axes.collections[::2], axes.collections[1::2]
    spans = [tuple(whisker.get_segments()[0][:, 0]) for whisker in whiskers]
    return spans, [tuple(mark.get_facecolor()[0][:3]) != (1.0, 1.0, 1.0) for mark in marks]


def test_the_figure_shows_each_paired_difference(suite, metric_of):
    figure = suite_figure(suite, metric_of, "lora")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["average of 3 tasks", "cola, matthews ↑", "stsb, pearson ↑", "rte, accuracy ↑"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["pissa", "balora"]
    expected = [paired_difference(suite, method, "lora", metric_of) for method in ("pissa", "balora")]
    spans, filled = widths_and_faces(figure.axes[0])
    assert spans == [pytest.approx((found.low, found.high)) for found in expected]
    assert filled == [False, True]
    assert widths_and_faces(figure.axes[1])[1] == [False, False]  # three pairs are too few
    assert all(axes.get_xlim()[0] < 0 < axes.get_xlim()[1] for axes in figure.axes)


def test_better_is_to_the_right(suite):
    left, right = suite_figure(suite, "kl_to_base", "lora").axes[0].get_xlim()
    assert left > right
    figure = suite_figure(study({"a": {"lora": [1.0], "balora": [2.0]}}, "novelty"), "novelty", "lora")
    assert figure.get_supxlabel() == "above lora →"


def test_averages_over_different_tasks_are_not_drawn(suite, metric_of):
    some = [run for run in suite if (run.task, run.method) != ("rte", "pissa")]
    figure = suite_figure(some, metric_of, "lora")
    assert len(widths_and_faces(figure.axes[0])[0]) == 1
    assert [len(widths_and_faces(axes)[0]) for axes in figure.axes[1:]] == [2, 2, 1]
    single = [run for run in suite if run.seed == 1]
    assert [len(axes.collections) for axes in suite_figure(single, metric_of, "lora").axes] == [2, 2, 2, 2]


def test_no_figure_without_a_comparison(suite, metric_of):
    assert suite_figure([run for run in suite if run.method in ("lora", PRETRAINED)], metric_of, "lora") is None
    assert suite_figure(suite, "f1", "lora") is None


def test_eight_tasks_and_six_odd_names_do_not_overlap():
    names = ["lora", "_hidden", "$x_1", r"a $\bad{$ b", "<script>alert(1)</script>", "ba-lora without spectral"]
    runs = [
        Run(name, seed, f"quite a long task {task}", {"accuracy_mismatched": seed * index * task / 1e4}, 1.0, 1.0, 1)
        for task in range(8)
        for index, name in enumerate(names)
        for seed in (1, 2, 3)
    ]
    with warnings.catch_warnings(), figure_style():
        warnings.simplefilter("error")
        figure = suite_figure(runs, "accuracy_mismatched", "lora")
        svg = figure_svg(figure, "suite")
        figure.draw_without_rendering()
    assert "<script" not in svg
    texts = [axes.title for axes in figure.axes] + [axes._left_title for axes in figure.axes]
    texts += [label for axes in figure.axes for label in axes.get_xticklabels()]
    texts += [label for axes in figure.axes[::4] for label in axes.get_yticklabels()]
    boxes = [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]
    assert len(boxes) > 20
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_no_average_panel_for_opposite_directions(suite, metric_of):
    mixed = [replace(run, metrics={"perplexity": 10.0 + run.seed}) if run.task == "rte" else run for run in suite]
    figure = suite_figure(mixed, metric_of | {"rte": "perplexity"}, "lora")
    assert [axes.get_title(loc="left").split(",")[0] for axes in figure.axes] == ["cola", "stsb", "rte"]
