"""Tasks for lm-evaluation-harness that read local files: the functions that the YAML files in this folder name.

The harness itself finds them too, with `--include_path` this folder and `--metadata '{"data_dir": …}'`.
"""

import contextlib
import importlib.util
import io
import json
import math
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict

from balora.data.sources import load_table
from balora.errors import BALoraError
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


def _test_set(data_dir: str, file: str, columns: tuple[str, ...]) -> DatasetDict:
    source = str(Path(data_dir) / file)
    rows = load_table(source)
    if missing := [name for name in columns if name not in rows.column_names]:
        raise BALoraError(f"{source}: no column {missing[0]!r}; there are {', '.join(rows.column_names)}")
    return DatasetDict(test=rows.select_columns(list(columns)))


def arc_easy(data_dir: str, **_: Any) -> DatasetDict:
    """Load ARC-Easy's test set from `arc/easy_test.jsonl`."""
    return _test_set(data_dir, "arc/easy_test.jsonl", ("query", "choices", "gold"))


def arc_challenge(data_dir: str, **_: Any) -> DatasetDict:
    """Load ARC-Challenge's test set from `arc/challenge_test.jsonl`."""
    return _test_set(data_dir, "arc/challenge_test.jsonl", ("query", "choices", "gold"))


def hellaswag(data_dir: str, **_: Any) -> DatasetDict:
    """Load a thousand cleaned rows of HellaSwag's validation set from `hellaswag/validation_1000.jsonl`."""
    return _test_set(data_dir, "hellaswag/validation_1000.jsonl", ("query", "choices", "gold"))


def piqa(data_dir: str, **_: Any) -> DatasetDict:
    """Load PIQA's validation set from `piqa/validation.jsonl`."""
    return _test_set(data_dir, "piqa/validation.jsonl", ("goal", "sol1", "sol2", "label"))


def openbookqa(data_dir: str, **_: Any) -> DatasetDict:
    """Load OpenBookQA's validation set from `openbookqa/validation.jsonl`."""
    return _test_set(data_dir, "openbookqa/validation.jsonl", ("question_stem", "choices", "answerKey"))


def lambada(data_dir: str, **_: Any) -> DatasetDict:
    """Load OpenAI's version of LAMBADA's test set from `lambada/test_openai.jsonl`."""
    return _test_set(data_dir, "lambada/test_openai.jsonl", ("context", "continuation"))


def truthfulqa_mc1(data_dir: str, **_: Any) -> DatasetDict:
    """Load TruthfulQA's questions with one true answer, the first, from `truthfulqa/mc_task.json`."""
    return _truthfulqa(data_dir, "mc1_targets")


def truthfulqa_mc2(data_dir: str, **_: Any) -> DatasetDict:
    """Load TruthfulQA's questions with all their answers from `truthfulqa/mc_task.json`."""
    return _truthfulqa(data_dir, "mc2_targets")


def _truthfulqa(data_dir: str, targets: str) -> DatasetDict:
    source = Path(data_dir) / "truthfulqa" / "mc_task.json"
    try:
        questions = json.loads(source.read_text(encoding="utf-8"))
        # True answers first, since lm-eval's task expects the true one there.
        answers = [sorted(row[targets].items(), key=lambda pair: -pair[1]) for row in questions]
        rows = [
            {"question": row["question"], "choices": [text for text, _ in own], "labels": [label for _, label in own]}
            for row, own in zip(questions, answers, strict=True)
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BALoraError(f"{source}: cannot read TruthfulQA's mc_task.json ({error!r})") from error
    return DatasetDict(test=Dataset.from_list(rows))


@cache
def _truthfulqa_template() -> str:
    """Return the prompt of lm-eval's own task, with its six questions and answers."""
    import lm_eval.tasks

    file = Path(lm_eval.tasks.__file__).parent / "truthfulqa" / "truthfulqa_mc1.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))["doc_to_text"]


def truthfulqa_prompt(row: dict[str, Any]) -> str:
    """Return lm-eval's prompt of a TruthfulQA question."""
    from lm_eval.utils import apply_template

    return apply_template(_truthfulqa_template(), row)


def true_probability(row: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return the probability of the true answers among all of a question's (MC2, Lin et al. 2022)."""
    nats = [own for own, _ in results]
    weights = [math.exp(own - max(nats)) for own in nats]
    true = sum(weight for weight, label in zip(weights, row["labels"], strict=True) if label == 1)
    return {"acc": true / sum(weights)}


#: Packages that lm-eval's checks of IFEval's instructions import.
IFEVAL_PACKAGES = ("langdetect", "immutabledict", "nltk")
#: Instructions whose check splits sentences with NLTK's data, which it would download.
NEEDS_PUNKT = "length_constraints:number_sentences"


def check_ifeval_packages() -> None:
    """Raise `BALoraError` if a package that checks IFEval's instructions is not installed."""
    if missing := [name for name in IFEVAL_PACKAGES if importlib.util.find_spec(name) is None]:
        raise BALoraError(
            f"the checks of IFEval's instructions need {' and '.join(missing)}, not installed here; "
            "use pip install 'lm-eval[ifeval]'"
        )


def ifeval(data_dir: str, **_: Any) -> DatasetDict:
    """Load IFEval's prompts from `ifeval/input_data.jsonl`, without those that cannot be checked here.

    Raises:
        BALoraError: If the file is missing or malformed, or a package that checks instructions is not installed.
    """
    check_ifeval_packages()
    source = Path(data_dir) / "ifeval" / "input_data.jsonl"
    try:
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
        kept = [row for row in rows if _has_punkt() or NEEDS_PUNKT not in row["instruction_id_list"]]
        # As JSON, since a table would give every instruction all arguments.
        told = [{"prompt": row["prompt"], "row": json.dumps(row)} for row in kept]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BALoraError(f"{source}: cannot read IFEval's prompts ({error!r})") from error
    if len(kept) < len(rows):
        warnings.warn(
            f"balora: ifeval: {len(rows) - len(kept)} of {len(rows)} prompts are left out, since they count sentences "
            "and NLTK's punkt_tab is not installed; install it with python -m nltk.downloader punkt_tab",
            stacklevel=2,
        )
    return DatasetDict(test=Dataset.from_list(told))


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def follow_instructions(row: dict[str, Any], completions: list[str]) -> dict[str, float]:
    """Return whether a reply follows all instructions of its prompt, as lm-eval checks it, strictly and loosely."""
    with contextlib.redirect_stdout(io.StringIO()):  # it announces a download at its first import
        from lm_eval.tasks.ifeval.utils import process_results
    found = process_results(json.loads(row["row"]), completions)
    return {name: float(found[name]) for name in ("prompt_level_strict_acc", "prompt_level_loose_acc")}
