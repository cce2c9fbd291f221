"""The figure of a suite of tasks: each method's paired difference to a baseline, per task and on average."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balora.report.glossary import with_arrow
from balora.report.paired import ENOUGH_PAIRS, Difference, paired_difference
from balora.report.results import Run, TaskMetric, metric_for, tasks_of
from balora.report.style import INK, MUTED, figure_style, method_styles

SUITE_CAPTION = (
    "Difference of each method to the baseline, paired by task and seed, with its 95 % bootstrap interval. Right of "
    "the line is better; each panel has its own scale. A filled mark is a clear difference: its interval excludes "
    f"zero and stands on at least {ENOUGH_PAIRS} pairs. The intervals tell the noise of seeds alone, are too narrow "
    "where seeds are few, and each stands for itself: among many, some exclude zero by chance."
)

_WIDTH = 9.6  # inches, of the figure
_LETTER = 0.085  # inches, of an average letter


def suite_figure(runs: Sequence[Run], metric_of: TaskMetric, baseline: str) -> Figure | None:
    """Draw the paired difference of each method to the baseline with its 95 % interval, as dots and whiskers.

    The top panel has the average over tasks, for methods that have a score on all of them; below is a panel per task.
    Better than the baseline is always to the right: where lower is better, the axis is inverted. Each panel has its
    own scale. A filled mark is a clear difference, an open one may be noise, and one without whisker has no interval.

    Args:
        runs: The runs of the study.
        metric_of: One metric for all tasks, or task to metric.
        baseline: The method to compare the others with.

    Returns:
        The figure, or None if no method shares a task and seed with the baseline.
    """
    styles = {method: style for method, style in method_styles(runs).items() if method != baseline}

    def compare(some: Sequence[Run]) -> dict[str, Difference]:
        found = {method: paired_difference(some, method, baseline, metric_of) for method in styles}
        return {method: difference for method, difference in found.items() if difference}

    by_task = {task: compare([run for run in runs if run.task == task]) for task in tasks_of(runs)}
    by_task = {task: differences for task, differences in by_task.items() if differences}
    if not by_task:
        return None
    # Averages over different sets of tasks would not be comparable.
    average = {method: difference for method, difference in compare(runs).items() if difference.tasks == len(by_task)}

    columns = _columns(len(by_task))
    rows = math.ceil(len(by_task) / columns)
    title_width = int((_WIDTH - _LETTER * max(map(len, styles))) / columns / _LETTER)  # letters
    panel = 0.62 + 0.2 * len(styles)  # inches
    with figure_style():
        figure = Figure(figsize=(_WIDTH, panel * (rows + bool(average)) + 0.2), layout="constrained")
        figure.get_layout_engine().set(wspace=0.06, hspace=0.06)
        grid = figure.add_gridspec(rows + bool(average), columns)
        if average:
            axes = figure.add_subplot(grid[0, :])
            _draw(axes, f"average of {len(by_task)} tasks", average, styles)
            axes.locator_params(axis="x", nbins=8, steps=(1, 2, 5, 10))
        for index, (task, differences) in enumerate(by_task.items()):
            axes = figure.add_subplot(grid[index // columns + bool(average), index % columns])
            title = f"{task}, {with_arrow(metric_for(task, metric_of))}"
            _draw(axes, textwrap.fill(title, title_width, break_long_words=False), differences, styles)
            _few_ticks(axes)
            axes.tick_params(labelleft=index % columns == 0)
        label = figure.supxlabel(" ", x=0.99, ha="right", color=MUTED, fontsize="medium")
        known = all(found.better for differences in by_task.values() for found in differences.values())
        label.set(text=f"{'better than' if known else 'above'} {baseline} →", parse_math=False)
    return figure


def _columns(panels: int) -> int:
    """Return three or four columns, whichever leaves fewer cells empty."""
    return panels if panels <= 4 else min((4, 3), key=lambda columns: -panels % columns)


def _draw(
    axes: Axes, title: str, differences: Mapping[str, Difference], styles: Mapping[str, tuple[str, str]]
) -> None:
    axes.axvline(0.0, color=INK, linewidth=0.9, zorder=1)
    for row, (method, (colour, marker)) in enumerate(styles.items()):
        if method in differences:
            found = differences[method]
            if found.low is not None:
                axes.hlines(row, found.low, found.high, color=colour, linewidth=1.8)
            face = colour if found.clear else "white"
            axes.scatter(found.mean, row, s=44, color=face, edgecolors=colour, marker=marker, linewidths=1.4, zorder=3)
    axes.set_yticks(range(len(styles)))
    axes.set_yticklabels(styles, parse_math=False, color=INK)
    axes.set_ylim(len(styles) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:+.3g}".replace("-", "−") if value else "0")
    axes.set_title(title, loc="left", fontsize="medium", color=INK, parse_math=False)
    if any(found.better == "lower" for found in differences.values()):
        axes.invert_xaxis()


def _few_ticks(axes: Axes) -> None:
    """Label zero and one round number on either side: a small panel has no room for more."""
    low, high = sorted(axes.get_xlim())
    reach = max(-low, high)
    power = 10.0 ** math.floor(math.log10(reach))
    step = max(digit * power for digit in (1, 2, 5) if digit * power <= reach)
    axes.set_xticks([tick for tick in (-step, 0.0, step) if low <= tick <= high])
