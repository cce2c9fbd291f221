"""Tasks for lm-evaluation-harness that read local files: what the YAML files beside this one refer to.

Each is found by the harness itself too, with `--include_path` this folder and `--metadata '{"data_dir": …}'`.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from balora.data.sources import load_table
from balora.evaluation.maths import grade_maths
from balora.evaluation.maths_rows import gsm8k_rows, math_rows
from balora.evaluation.wikitext import read_pages


def wikitext2(data_dir: str, **_: Any) -> DatasetDict:
    """WikiText-2's test set from `wikitext2/test.txt`, one page a row.

    Raises:
        BALoraError: If the file is missing or holds no text.
    """
    pages = read_pages(Path(data_dir) / "wikitext2" / "test.txt")
    return DatasetDict(test=Dataset.from_dict({"page": pages}))


def gsm8k(data_dir: str, **_: Any) -> DatasetDict:
    """GSM8K's test set from `gsm8k/test.jsonl`.

    Raises:
        BALoraError: If the file is missing or not as published.
    """
    source = str(Path(data_dir) / "gsm8k" / "test.jsonl")
    return DatasetDict(test=gsm8k_rows(load_table(source), source=source))


def math500(data_dir: str, **_: Any) -> DatasetDict:
    """MATH-500 from `math500/test.jsonl`.

    Raises:
        BALoraError: If the file is missing or not as published.
    """
    source = str(Path(data_dir) / "math500" / "test.jsonl")
    return DatasetDict(test=math_rows(load_table(source), source=source))


def grade(row: dict[str, Any], completions: list[str]) -> dict[str, float]:
    """A solution's part in `accuracy` and `unanswered`, as in `balora.evaluation.maths.score_maths`."""
    (mark,) = grade_maths(completions, [row["answer"]])
    return {"accuracy": float(mark is True), "unanswered": float(mark is None)}
