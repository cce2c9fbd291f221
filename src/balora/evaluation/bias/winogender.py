"""Winogender schemas (Rudinger et al., 2018): one sentence with he, she and they, and who works in the occupation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from balora.data.columns import row_error, shortened
from balora.errors import BALoraError
from balora.evaluation.bias.pairs import SentencePair
from balora.evaluation.bias.rows import read_columns

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
    """The 240 triples of `all_sentences.tsv`, its 720 sentences.

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
    """Percentages of women in the 60 occupations of `occupations-stats.tsv`, by occupation and then `SOURCES`.

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
    """Each triple's `he` and `she`: stereotypical is that of the gender of most in the occupation, by `source`.

    Groups are `occupation` and `participant`, whom the pronoun means.
    """
    pairs = []
    for triple in triples:
        sides = ("female", "male") if occupations[triple.occupation][source] > 50 else ("male", "female")
        pairs.append(SentencePair(*(triple.sentences[side] for side in sides), (triple.referent,)))
    return pairs


def _parts(path: str | Path, number: int, sentence_id: str) -> list[str]:
    """Occupation, participant, referent's digit and gender of an id."""
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
