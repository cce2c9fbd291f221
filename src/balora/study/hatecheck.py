"""How sure a study's classifiers are of HateCheck's cases, and on which side: drawn case by case."""

import json

from balora.report.figures.classification import violin_figure
from balora.study.artifacts import Drawn, Finished, with_file
from balora.study.benchmarks import FOLDER

CAPTION = (
    "The probability that the classifier gives to what a case of HateCheck is, hateful or not: all cases that it was "
    "not trained on, all seeds. Beyond the dotted line it is right, with the share of such cases at the side; the bar "
    "spans the middle half of the cases."
)


def case_figures(finished: list[Finished]) -> list[Drawn]:
    """For each task that was judged on HateCheck, a violin of all its cases for every method."""
    right: dict[str, dict[str, list[float]]] = {}
    for done, file in with_file(finished, f"{FOLDER}/hatecheck.jsonl"):
        cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        odds = [case["p_hateful"] if case["hateful"] else 1 - case["p_hateful"] for case in cases]
        right.setdefault(done.run.task, {}).setdefault(done.run.method, []).extend(odds)
    name = "probability of the right answer"
    return [
        (f"{task}: HateCheck by case", CAPTION, violin_figure(found, name, middle=0.5))
        for task, found in right.items()
    ]
