"""Tasks for lm-evaluation-harness that read local files: the functions that the YAML files in this folder name.

The harness itself finds them too, with `--include_path` this folder and `--metadata '{"data_dir": …}'`.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from balora.data.sources import load_table
from balora.evaluation.maths import grade_maths, gsm8k_rows, math_rows
from balora.evaluation.perplexity import read_pages


def wikitext2(data_dir: str, **_: Any) -> DatasetDict:
    """Load WikiText-2's test set from `wikitext2/test.txt`, one page per row.

    Raises:
        BALoraError: If the file is missing or has no text.
    """
    pages = read_pages(Path(data_dir) / "wikitext2" / "test.txt")
    return DatasetDict(test=Dataset.from_dict({"page": pages}))


def gsm8k(data_dir: str, **_: Any) -> DatasetDict:
    """Load GSM8K's test set from `gsm8k/test.jsonl`.

    Raises:
        BALoraError: If the file is missing or malformed.
    """
    source = str(Path(data_dir) / "gsm8k" / "test.jsonl")
    return DatasetDict(test=gsm8k_rows(load_table(source), source=source))


def math500(data_dir: str, **_: Any) -> DatasetDict:
    """Load MATH-500 from `math500/test.jsonl`.

    Raises:
        BALoraError: If the file is missing or malformed.
    """
    source = str(Path(data_dir) / "math500" / "test.jsonl")
    return DatasetDict(test=math_rows(load_table(source), source=source))


def grade(row: dict[str, Any], completions: list[str]) -> dict[str, float]:
    """Return a solution's contribution to `accuracy` and `unanswered`, the shares of right and of missing answers."""
    (mark,) = grade_maths(completions, [row["answer"]])
    return {"accuracy": float(mark is True), "unanswered": float(mark is None)}
