"""HateCheck (Röttger et al., 2021): functional tests of hate-speech classifiers, by the groups they are about."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from balora.errors import BALoraError
from balora.evaluation.bias.columns import check_known, read_columns

_LABELS = ("non-hateful", "hateful")


@dataclass(frozen=True)
class Case:
    """One test case.

    Attributes:
        text: The text to classify.
        hateful: Its label.
        functionality: The functionality that it tests, such as `negate_neg_nh`.
        target: The group that it is about; empty if it is about no group.
        template: Number of the template that it was filled from.
    """

    text: str
    hateful: bool
    functionality: str
    target: str
    template: str


def read_hatecheck(path: str | Path) -> list[Case]:
    """Read the 3728 cases of `test_suite_cases.csv`: 2563 hateful, 29 functionalities, 7 targets.

    Raises:
        BALoraError: If a column or value is missing, or a label is neither `hateful` nor `non-hateful`.
    """
    columns = ["test_case", "label_gold", "functionality", "target_ident", "templ_id"]
    rows = read_columns(path, columns, blank=["target_ident"])
    check_known(path, rows, "label_gold", _LABELS)
    return [
        Case(
            text=row["test_case"].strip(),
            hateful=row["label_gold"] == "hateful",
            functionality=row["functionality"],
            target=row["target_ident"],
            template=row["templ_id"],
        )
        for row in rows
    ]


def hatecheck_scores(cases: Sequence[Case], predictions: np.ndarray) -> dict[str, dict]:
    """Score how well a classifier finds hate, overall and for each target.

    Args:
        cases: N cases.
        predictions: `(N,)`, 1 or True where the classifier says hateful.

    Returns:
        `overall`: `accuracy`, and `precision`, `recall` and `f1` of the class hateful, 0 where undefined.
        `functionality`: accuracy by name.
        `target`: by name `recall`, the share of hateful cases found; `false_positive_rate`, the share of others taken
        for hateful; `accuracy`. NaN where a target has no such case.
        `gap`: largest minus smallest of each of these over targets, 0 where all fare alike: those of `recall` and
        `false_positive_rate` are the two sides of equalized odds (Hardt et al., 2016). NaN where no target has one.

    Raises:
        BALoraError: If there is not one prediction, 0 or 1, for each case.
    """
    predicted = np.asarray(predictions)
    if predicted.shape != (len(cases),) or not np.isin(predicted, (0, 1)).all():
        raise BALoraError(
            f"predictions: expected one for each of {len(cases)} cases, 1 for hateful and 0 for not; found values "
            f"{np.unique(predicted)[:5].tolist()} of shape {predicted.shape}"
        )
    predicted = predicted.astype(bool)
    hateful = np.array([case.hateful for case in cases])
    functionality = np.array([case.functionality for case in cases])
    target = np.array([case.target for case in cases])
    precision, recall, f1, _ = precision_recall_fscore_support(hateful, predicted, average="binary", zero_division=0)
    by_target = {
        name: _rates(hateful[target == name], predicted[target == name]) for name in np.unique(target).tolist() if name
    }
    return {
        "overall": {
            "accuracy": float((hateful == predicted).mean()),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
        },
        "functionality": {
            name: float((hateful == predicted)[functionality == name].mean())
            for name in np.unique(functionality).tolist()
        },
        "target": by_target,
        "gap": {
            rate: _gap([rates[rate] for rates in by_target.values()])
            for rate in ("recall", "false_positive_rate", "accuracy")
        },
    }


def identity_pairs(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Return counterfactual pairs: cases of one template that differ in the target alone.

    Templates of slurs, which have several for a target, make none: slurs are not alike in force.

    Returns:
        Indices into the cases `(P, 2)`, and the template of each pair `(P,)`, which `classifier_bias_score` takes as
        clusters. Of the whole suite P = 8841, 21 pairs of each of 421 templates.
    """
    filled: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        if case.target:
            filled.setdefault((case.functionality, case.template), []).append(i)
    pairs, templates = [], []
    for number, members in enumerate(filled.values()):
        if len({cases[i].target for i in members}) == len(members):
            own = list(combinations(members, 2))
            pairs += own
            templates += [number] * len(own)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(templates, dtype=np.int64)


def _rates(hateful: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    return {
        "recall": float(predicted[hateful].mean()) if hateful.any() else np.nan,
        "false_positive_rate": float(predicted[~hateful].mean()) if not hateful.all() else np.nan,
        "accuracy": float((hateful == predicted).mean()),
    }


def _gap(rates: list[float]) -> float:
    known = [rate for rate in rates if not np.isnan(rate)]
    return max(known) - min(known) if known else np.nan
