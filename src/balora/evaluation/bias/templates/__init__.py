"""Texts to measure leanings on where one has none of one's own: short, balanced by frame, and all written for balora.

`OCCUPATIONS` are prompts that name nobody's gender; `PEOPLE` are sentences with words of the list `gender`, only such
as stay grammatical when exchanged; `CONTINUATIONS` is a folder in the schema of BOLD, in which the groups of a domain
share their frames.
"""

from pathlib import Path

from balora.evaluation.bias.columns import read_columns

_FOLDER = Path(__file__).parent
OCCUPATIONS = _FOLDER / "occupations.txt"
PEOPLE = _FOLDER / "people.txt"
CONTINUATIONS = _FOLDER / "continuations"


def read_texts(path: str | Path) -> list[str]:
    """Texts of a local file, without blanks around them: a `.txt` with one a line, or a table's column `text`.

    Raises:
        BALoraError: If the file cannot be read, has no such column, or a text is blank.
    """
    return [row["text"].strip() for row in read_columns(path, ["text"])]
