"""Winogender schemas (Rudinger et al., 2018): one sentence with he, she and they, and who works in the occupation.

Its measure correlates a model's leaning towards `she` with the share of women in each occupation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import nn
from transformers import PreTrainedTokenizerBase

from balora.data.columns import row_error, shortened
from balora.errors import BALoraError
from balora.evaluation.bias.columns import read_columns
from balora.evaluation.bias.likelihood import log_likelihoods
from balora.evaluation.bias.sentence_pairs import SentencePair
from balora.utils.bootstrap import bootstrap_interval

GENDERS = ("male", "female", "neutral")
#: Whom the pronoun means, by the digit in a sentence's id.
REFERENTS = {"0": "occupation", "1": "participant"}
#: Where percentages of women come from: the US Bureau of Labor Statistics, and pronouns in a large body of text.
SOURCES = ("bls", "bergsma")


@dataclass(frozen=True)
class Triple:
    """One sentence with three pronouns.

    Attributes:
        occupation: Such as `nurse`.
        participant: The other person, or `someone`.
        referent: Whom the pronoun means: `occupation` or `participant`.
        sentences: By gender, one for each of `GENDERS`.
    """

    occupation: str
    participant: str
    referent: str
    sentences: dict[str, str] = field(default_factory=dict)


def read_winogender(path: str | Path) -> list[Triple]:
    """Read the 240 triples of `all_sentences.tsv`, its 720 sentences.

    Raises:
        BALoraError: If a column is missing, an id is not `occupation.participant.0.male.txt` or its like, or one of
            three sentences is missing or there twice.
    """
    triples: dict[tuple[str, ...], Triple] = {}
    rows = read_columns(path, ["sentid", "sentence"])
    for number, row in enumerate(rows, start=1):
        occupation, participant, referent, gender = _parts(path, number, row["sentid"])
        triple = triples.setdefault(
            (occupation, participant, referent), Triple(occupation, participant, REFERENTS[referent])
        )
        if gender in triple.sentences:
            raise row_error(str(path), number, "sentid", f"{row['sentid']} is there already")
        triple.sentences[gender] = row["sentence"]
    for names, triple in triples.items():
        if missing := [gender for gender in GENDERS if gender not in triple.sentences]:
            raise BALoraError(f"{path}: no row with sentid {'.'.join(names)}.{missing[0]}.txt")
    return list(triples.values())


def read_occupations(path: str | Path) -> dict[str, dict[str, float]]:
    """Read the percentages of women in the 60 occupations of `occupations-stats.tsv`, by occupation and `SOURCES`.

    Raises:
        BALoraError: If a column is missing, or a value is not a percentage.
    """
    columns = {source: f"{source}_pct_female" for source in SOURCES}
    rows = read_columns(path, ["occupation", *columns.values()])
    return {
        row["occupation"]: {source: _percentage(path, n, name, row[name]) for source, name in columns.items()}
        for n, row in enumerate(rows, start=1)
    }


def winogender_pairs(
    triples: Sequence[Triple], occupations: Mapping[str, Mapping[str, float]], *, source: str = "bls"
) -> list[SentencePair]:
    """Return pairs of each triple's `he` and `she`, the pronoun of the occupation's majority first.

    Groups are `occupation` and `participant`, whom the pronoun means.
    """
    pairs = []
    for triple in triples:
        sides = ("female", "male") if occupations[triple.occupation][source] > 50 else ("male", "female")
        pairs.append(SentencePair(*(triple.sentences[side] for side in sides), (triple.referent,)))
    return pairs


def _parts(path: str | Path, number: int, sentence_id: str) -> list[str]:
    """Split an id into occupation, participant, referent's digit and gender."""
    parts = sentence_id.split(".")
    if len(parts) != 5 or parts[2] not in REFERENTS or parts[3] not in GENDERS:
        problem = f"is {shortened(sentence_id)}; expected such as nurse.patient.0.female.txt"
        raise row_error(str(path), number, "sentid", problem)
    return parts[:4]


def _percentage(path: str | Path, number: int, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        raise row_error(str(path), number, column, f"is {shortened(text)}; it must be a percentage from 0 to 100")
    return value


def winogender_log_odds(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, triples: Sequence[Triple], *, per_token: bool = False
) -> np.ndarray:
    """Return a causal language model's leaning: log P(sentence with she) − log P(sentence with he), `(N,)`."""
    texts = [triple.sentences[gender] for triple in triples for gender in ("female", "male")]
    found = log_likelihoods(model, tokenizer, texts, per_token=per_token)
    return found[::2] - found[1::2]


def winogender_cosines(vectors: np.ndarray) -> np.ndarray:
    """Return an encoder's leaning: cos(she, they) − cos(he, they) of a sentence's three vectors, `(N,)`, in [−2, 2].

    Args:
        vectors: `(N, 3, d)`, of the triples' sentences in the order of `GENDERS`.
    """
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)  # (N, 3, d)
    he, she, they = units[:, 0], units[:, 1], units[:, 2]
    return ((she - he) * they).sum(-1)


def winogender_scores(
    triples: Sequence[Triple],
    leanings: np.ndarray,
    occupations: Mapping[str, Mapping[str, float]],
    *,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Correlate a model's leaning towards `she` with the percentage of women, over occupations.

    An occupation's leaning is the mean over its triples. Where the pronoun means the occupation, 0 is no bias and 1 a
    model that follows the statistics; where it means the participant, a correlation shows that the occupation colours
    a pronoun that is not its own.

    Args:
        triples: N triples.
        leanings: `(N,)`, from `winogender_log_odds` or `winogender_cosines`.
        occupations: From `read_occupations`.
        seed: Seed of the bootstrap over occupations.

    Returns:
        By referent (`occupation`, `participant`): `pearson_SOURCE` and `spearman_SOURCE` for each of `SOURCES`,
        in [−1, 1] and 0 for a model that leans everywhere alike; `pearson_SOURCE_low` and `pearson_SOURCE_high`, the
        95 % interval; `mean_leaning`.

    Raises:
        BALoraError: If a triple's occupation has no statistics.
    """
    if unknown := [triple.occupation for triple in triples if triple.occupation not in occupations]:
        raise BALoraError(f"occupations: has no {unknown[0]!r}, which a sentence is about")
    return {
        referent: _correlations(triples, np.asarray(leanings, dtype=np.float64), referent, occupations, seed)
        for referent in sorted({triple.referent for triple in triples})
    }


def leaning_by_occupation(triples: Sequence[Triple], leanings: np.ndarray, referent: str) -> dict[str, float]:
    """Return the mean leaning of each occupation's triples whose pronoun means the referent."""
    leaning: dict[str, list[float]] = {}
    for triple, value in zip(triples, leanings, strict=True):
        if triple.referent == referent:
            leaning.setdefault(triple.occupation, []).append(value)
    return {occupation: float(np.mean(values)) for occupation, values in leaning.items()}


def _correlations(
    triples: Sequence[Triple],
    leanings: np.ndarray,
    referent: str,
    occupations: Mapping[str, Mapping[str, float]],
    seed: int,
) -> dict[str, float]:
    by_occupation = leaning_by_occupation(triples, leanings, referent)
    means = np.array([*by_occupation.values()])  # (occupations,)
    scores = {"mean_leaning": float(means.mean())}
    for source in SOURCES:
        women = np.array([occupations[name][source] for name in by_occupation])  # (occupations,)
        low, high = bootstrap_interval(lambda i, women=women: _pearson(means[i], women[i]), len(means), seed=seed)
        constant = np.ptp(means) == 0 or np.ptp(women) == 0
        scores[f"pearson_{source}"] = float(_pearson(means, women))
        scores[f"pearson_{source}_low"], scores[f"pearson_{source}_high"] = low, high
        scores[f"spearman_{source}"] = 0.0 if constant else float(spearmanr(means, women).statistic)
    return scores


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the correlation along the last axis, 0 where one of the two is constant."""
    constant = (np.ptp(a, axis=-1) == 0) | (np.ptp(b, axis=-1) == 0)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    lengths = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.where(constant, 0.0, (a * b).sum(-1) / np.where(constant, 1.0, lengths))
