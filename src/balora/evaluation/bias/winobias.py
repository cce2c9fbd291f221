"""WinoBias (Zhao et al., 2018): two occupations and a pronoun, of the gender stereotyped for its occupation or not."""

import re
from pathlib import Path

from balora.errors import BALoraError
from balora.evaluation.bias.sentence_pairs import SentencePair

#: Types of sentence: who is meant takes knowledge of the world (1), or syntax tells it (2).
TYPES = (1, 2)
_LINE = re.compile(r"(\d+) +(.*\[.*\].*)")
# "Her" stands for both "him" and "his", so all of them are one.
_PRONOUNS = {"he": "they", "she": "they", "himself": "themself", "herself": "themself"}
_PRONOUNS |= dict.fromkeys(("him", "his", "her", "hers"), "them")


def read_winobias(folder: str | Path, split: str) -> list[SentencePair]:
    """Read the 792 pairs of a split: lines of `pro_stereotyped_typeN.txt.SPLIT` and its `anti_stereotyped` twin.

    Groups are `type1` and `type2`, 396 pairs each. Numbers and brackets are taken off; else the text is as published.

    Args:
        folder: Folder of the files.
        split: `dev` or `test`.

    Raises:
        BALoraError: If a file is missing, a line is not of the published form, or two files differ in length.
    """
    pairs = []
    for kind in TYPES:
        pro, anti = (Path(folder) / f"{side}_stereotyped_type{kind}.txt.{split}" for side in ("pro", "anti"))
        sides = _read_sentences(pro), _read_sentences(anti)
        if len(sides[0]) != len(sides[1]):
            raise BALoraError(f"{anti}: {len(sides[1])} rows, but {pro.name} has {len(sides[0])}; they go in pairs")
        pairs += [SentencePair(*texts, (f"type{kind}",)) for texts in zip(*sides, strict=True)]
    return pairs


def is_counterfactual(pair: SentencePair) -> bool:
    """Return whether a pair's sentences differ in pronouns alone, as 1564 of the 1584 published ones do."""
    return _without_gender(pair.stereotypical) == _without_gender(pair.antistereotypical)


def _read_sentences(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise BALoraError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    if not lines:
        raise BALoraError(f"{path}: no rows")
    return [_sentence(path, number, line) for number, line in enumerate(lines, start=1)]


def _sentence(path: Path, number: int, line: str) -> str:
    found = _LINE.fullmatch(line.strip())
    if found is None or int(found[1]) != number:
        raise BALoraError(
            f"{path}, row {number}: expected '{number}' and a sentence with [someone] in brackets, found {line[:60]!r}"
        )
    return " ".join(re.sub(r"[\[\]]", "", found[2]).split())


def _without_gender(text: str) -> list[str]:
    return [_PRONOUNS.get(word, word) for word in re.findall(r"\w+|[^\w\s]", text.lower())]
