"""Scores of answers to questions: exact match and F1 as in HotpotQA and SQuAD, and semantic similarity."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from balora.errors import BALoraError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
#: Answers that get no partial credit.
WHOLE = ("yes", "no", "noanswer")


class AnswerScore(NamedTuple):
    """Scores of one prediction, each in [0, 1]."""

    em: float
    f1: float
    precision: float
    recall: float


def normalize_answer(text: str) -> str:
    """Normalize an answer: lower case, no ASCII punctuation, no articles, single spaces, in this order."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def score_answer(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """Return exact match and word overlap (Rajpurkar et al., 2016; Yang et al., 2018), after normalization.

    Precision and recall are the shares of the prediction's and the answer's words, each counted as often as it occurs,
    that the other has too; F1 is their harmonic mean, and 0 if no word is shared. If one of the two is `yes`, `no` or
    `noanswer` and the other differs, all three are 0: HotpotQA's rule, applied here to every dataset.

    Args:
        prediction: The model's text.
        answers: All accepted answers, at least one.

    Returns:
        The highest `em` and, as in SQuAD, the highest `f1` over the answers; `precision` and `recall` are those
        of the first answer with that F1.
    """
    normal = normalize_answer(prediction)
    accepted = [normalize_answer(answer) for answer in answers]
    f1, precision, recall = max((_overlap(normal, answer) for answer in accepted), key=lambda scores: scores[0])
    return AnswerScore(float(normal in accepted), f1, precision, recall)


def semantic_similarity(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    encode: Callable[[list[str]], np.ndarray],
) -> np.ndarray:
    """Return SemSim: the highest cosine of the sentence vectors of a prediction and its accepted answers.

    Args:
        predictions: N texts. An empty text has similarity 0, whatever its vector.
        answers: N lists of accepted answers.
        encode: Returns sentence vectors `(M, d)` of M unique texts, such as `SentenceTransformer(path).encode`. A zero
            vector has similarity 0 to everything.

    Returns:
        `(N,)`, in [-1, 1].
    """
    texts = sorted({*predictions, *(answer for accepted in answers for answer in accepted)})
    vectors = np.asarray(encode(texts), dtype=np.float64)  # (M, d)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)  # (M, 1)
    units = dict(zip(texts, vectors / np.where(norms == 0, 1, norms), strict=True))
    return np.array(
        [
            max(float(units[prediction] @ units[answer]) for answer in accepted) if prediction.strip() else 0.0
            for prediction, accepted in zip(predictions, answers, strict=True)
        ]
    )


def qa_metrics(
    predictions: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[[list[str]], np.ndarray] | None = None,
) -> dict[str, float]:
    """Return the scores of a model's answers, over all rows and by type and level of the question.

    Args:
        predictions: N texts, in the rows' order.
        rows: N rows of `balora.data.qa.QA_FEATURES`; their `answers`, `type` and `level`.
        encode: Sentence encoder for `semsim`, see `semantic_similarity`; default: no `semsim`.

    Returns:
        Means over rows: `em`, `f1`, `precision`, `recall` (`score_answer`) and `semsim`, and each of them over the
        rows of every type and level that is not "", such as `f1_comparison` and `em_hard`.

    Raises:
        BALoraError: If there are no rows, or not as many predictions.
    """
    rows = list(rows)
    if not rows or len(predictions) != len(rows):
        raise BALoraError(f"predictions: {len(predictions)} for {len(rows)} rows; give one per row, at least 1")
    answers = [row["answers"] for row in rows]
    scored = [score_answer(*pair) for pair in zip(predictions, answers, strict=True)]
    scores = {name: np.array([getattr(score, name) for score in scored]) for name in AnswerScore._fields}  # (N,) each
    if encode is not None:
        scores["semsim"] = semantic_similarity(predictions, answers, encode)
    means = {name: float(values.mean()) for name, values in scores.items()}
    for kind in ("type", "level"):
        kinds = np.array([row[kind] for row in rows])  # (N,)
        for value in sorted(set(kinds.tolist()) - {""}):
            means |= {f"{name}_{value}": float(values[kinds == value].mean()) for name, values in scores.items()}
    return means


def _overlap(prediction: str, answer: str) -> tuple[float, float, float]:
    """Return F1, precision and recall of normalized texts."""
    if prediction != answer and (prediction in WHOLE or answer in WHOLE):
        return 0.0, 0.0, 0.0
    predicted, accepted = prediction.split(), answer.split()
    shared = (Counter(predicted) & Counter(accepted)).total()
    if shared == 0:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(predicted), shared / len(accepted)
    return 2 * precision * recall / (precision + recall), precision, recall
