"""HateCheck's cases, a classifier's scores by a plain loop, and its counterfactual pairs."""

import re
from collections import Counter

import numpy as np
import pytest

from balora import BALoraError
from balora.evaluation.bias import classifier_bias_score, hatecheck_scores, identity_pairs, read_hatecheck

TARGETS = ["Muslims", "black people", "disabled people", "gay people", "immigrants", "trans people", "women"]


@pytest.fixture(scope="module")
def cases(data_dir):
    return read_hatecheck(data_dir / "hatecheck/test_suite_cases.csv")


def test_every_case_is_read(cases):
    assert len(cases) == 3728
    assert sum(case.hateful for case in cases) == 2563
    assert len({case.functionality for case in cases}) == 29
    assert sorted({case.target for case in cases}) == ["", *TARGETS]
    assert Counter(case.target for case in cases)[""] == 292
    assert all(case.hateful == case.functionality.endswith("_h") for case in cases)
    assert cases[0].text == "I hate women."


def test_scores_are_those_of_a_plain_loop(cases):
    predictions = [int("women" in case.text or len(case.text) % 3 == 0) for case in cases]
    scores = hatecheck_scores(cases, np.array(predictions))
    kinds = Counter()
    by_target = {name: Counter() for name in TARGETS}
    by_function = {}
    for case, said in zip(cases, predictions, strict=True):
        kind = {(True, 1): "tp", (True, 0): "fn", (False, 1): "fp", (False, 0): "tn"}[case.hateful, said]
        kinds[kind] += 1
        if case.target:
            by_target[case.target][kind] += 1
        by_function.setdefault(case.functionality, []).append(kind in ("tp", "tn"))
    precision, recall = kinds["tp"] / (kinds["tp"] + kinds["fp"]), kinds["tp"] / (kinds["tp"] + kinds["fn"])
    assert scores["overall"] == pytest.approx(
        {
            "accuracy": (kinds["tp"] + kinds["tn"]) / 3728,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
        }
    )
    assert scores["functionality"] == pytest.approx({name: sum(r) / len(r) for name, r in by_function.items()})
    for name, count in by_target.items():
        expected = {
            "recall": count["tp"] / (count["tp"] + count["fn"]),
            "false_positive_rate": count["fp"] / (count["fp"] + count["tn"]),
            "accuracy": (count["tp"] + count["tn"]) / count.total(),
        }
        assert scores["target"][name] == pytest.approx(expected)
    for rate in ("recall", "false_positive_rate", "accuracy"):
        values = [scores["target"][name][rate] for name in TARGETS]
        assert scores["gap"][rate] == pytest.approx(max(values) - min(values))
    # Texts that name women were flagged whatever they say.
    assert max(TARGETS, key=lambda name: scores["target"][name]["false_positive_rate"]) == "women"
    assert scores["gap"]["false_positive_rate"] > 0.2


def test_a_right_classifier_has_no_gap_and_a_mute_one_neither(cases):
    hateful = np.array([case.hateful for case in cases])
    right = hatecheck_scores(cases, hateful)
    assert right["overall"] == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1}
    assert set(right["functionality"].values()) == {1}
    assert right["gap"] == {"recall": 0, "false_positive_rate": 0, "accuracy": 0}
    mute = hatecheck_scores(cases, np.zeros(3728, dtype=int))
    assert mute["overall"] == {"accuracy": pytest.approx(1165 / 3728), "precision": 0, "recall": 0, "f1": 0}
    assert mute["gap"]["recall"] == mute["gap"]["false_positive_rate"] == 0


def test_rates_that_no_case_shows_are_nan(cases):
    hateful = [case for case in cases if case.hateful and case.target == "women"]
    scores = hatecheck_scores(hateful, np.ones(len(hateful)))
    assert scores["target"]["women"]["recall"] == 1
    assert np.isnan(scores["target"]["women"]["false_positive_rate"])
    assert np.isnan(scores["gap"]["false_positive_rate"])
    untargeted = [case for case in cases if not case.target]
    assert hatecheck_scores(untargeted, np.zeros(292))["target"] == {}


def test_predictions_must_be_one_for_each_case(cases):
    for predictions in (np.zeros(3727), np.full(3728, 0.3), np.zeros((3728, 2)), np.full(3728, np.nan)):
        with pytest.raises(BALoraError, match="predictions: expected one for each of 3728 cases"):
            hatecheck_scores(cases, predictions)


def test_pairs_differ_in_the_target_alone(cases):
    pairs, templates = identity_pairs(cases)
    assert pairs.shape == (8841, 2)
    assert len(set(templates.tolist())) == 421
    assert set(Counter(templates.tolist()).values()) == {21}
    for i, j in pairs[::7]:
        assert (cases[i].functionality, cases[i].template) == (cases[j].functionality, cases[j].template)
        assert cases[i].target != cases[j].target
        assert cases[i].hateful == cases[j].hateful
    assert not any("slur" in cases[i].functionality for i in pairs[:, 0])


def test_the_bias_score_of_a_classifier_that_flags_one_target(cases):
    pairs, templates = identity_pairs(cases)
    blind = np.tile([0.3, 0.7], (len(cases), 1))
    assert classifier_bias_score(blind[pairs[:, 0]], blind[pairs[:, 1]], clusters=templates)["bias_score"] == 0
    flags = np.array([[0.0, 1.0] if case.target == "women" else [0.5, 0.5] for case in cases])
    scores = classifier_bias_score(flags[pairs[:, 0]], flags[pairs[:, 1]], clusters=templates)
    assert scores["bias_score"] == pytest.approx(0.5 * 6 / 21)  # 6 of each template's 21 pairs have women on one side
    assert scores["bias_score_low"] == pytest.approx(scores["bias_score_high"])  # templates are all alike in this


HEADER = "test_case,label_gold,functionality,target_ident,templ_id\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER.replace(",templ_id", "") + "a,hateful,f,women\n", "no column 'templ_id'"),
        (HEADER + "a,hateful,f,,1\nb,hate,f,women,1\n", "row 2, field 'label_gold': is 'hate'; it must be one of"),
        (HEADER + "a,hateful,,women,1\n", "row 1, field 'functionality': is empty"),
    ],
)
def test_a_file_that_is_not_hatecheck_says_where(tmp_path, text, said):
    path = tmp_path / "cases.csv"
    path.write_text(text)
    with pytest.raises(BALoraError, match=f"^{re.escape(str(path))}.*{re.escape(said)}"):
        read_hatecheck(path)
