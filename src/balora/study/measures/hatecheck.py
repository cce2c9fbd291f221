"""Figure of HateCheck's cases: how probable a study's classifiers find the right class of each."""

import json

from balora.report.figures.classification import violin_figure
from balora.study.benchmarks import FOLDER
from balora.study.measures.finished import CaptionedFigure, FinishedRun, runs_with

CAPTION = (
    "Probability that the classifier gives to the right class, hateful or not, of each HateCheck case that is not in "
    "its training rows, over all seeds. Beyond the dotted line the classifier is right; the share of such cases is "
    "printed beside it. The bar spans the middle half of the cases."
)


def case_figures(finished: list[FinishedRun]) -> list[CaptionedFigure]:
    """Draw, for each task evaluated on HateCheck, a violin of all cases for every method."""
    right: dict[str, dict[str, list[float]]] = {}
    for done, file in runs_with(finished, f"{FOLDER}/hatecheck.jsonl"):
        cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        probabilities = [case["p_hateful"] if case["hateful"] else 1 - case["p_hateful"] for case in cases]
        right.setdefault(done.run.task, {}).setdefault(done.run.method, []).extend(probabilities)
    name = "probability of the right answer"
    return [
        (f"{task}: HateCheck by case", CAPTION, violin_figure(found, name, middle=0.5))
        for task, found in right.items()
    ]
