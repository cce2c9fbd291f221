"""How sure a study's classifiers are of HateCheck's cases, and on which side: drawn case by case."""

import json
from pathlib import Path

from matplotlib.figure import Figure

from balora.report import Run
from balora.report.violin import violin_figure
from balora.study.benchmarks import FOLDER
from balora.study.plan import Cell

CAPTION = (
    "The probability that the classifier gives to what a case of HateCheck is, hateful or not: all cases that it was "
    "not trained on, all seeds. Beyond the dotted line it is right, with the share of such cases at the side; the bar "
    "spans the middle half of the cases."
)


def case_figures(cells: list[Cell], runs: list[Run], directory: Path) -> list[tuple[str, str, Figure]]:
    """For each task that was judged on HateCheck, a violin of all its cases for every method.

    Args:
        cells: All cells of the study.
        runs: Theirs, in the same order.
        directory: The study's folder.

    Returns:
        Heading, caption and figure of each.
    """
    right: dict[str, dict[str, list[float]]] = {}
    for cell, run in zip(cells, runs, strict=True):
        file = directory / cell.folder / FOLDER / "hatecheck.jsonl"
        cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        if cases:
            odds = [case["p_hateful"] if case["hateful"] else 1 - case["p_hateful"] for case in cases]
            right.setdefault(run.task, {}).setdefault(run.method, []).extend(odds)
    name = "probability of the right answer"
    return [
        (f"{task}: HateCheck by case", CAPTION, violin_figure(found, name, middle=0.5))
        for task, found in right.items()
    ]
