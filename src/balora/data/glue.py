"""GLUE's eight tasks: their files, columns, class names and metrics.

Each task is read in three formats: the Hub's `nyu-mll/glue`, the official TSV files with their headers (CoLA has
none), and plain `text_a`, `text_b`, `label` rows. Class ids are the Hub's in all three.
"""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from balora.data.columns import column_list
from balora.errors import BALoraError

HUB_NAME = "nyu-mll/glue"


@dataclass(frozen=True)
class GlueTask:
    """A GLUE task.

    Attributes:
        folder: Folder of the task in the official download.
        label_names: Class names by id; empty for regression.
        metric: The task's metric.
        texts: Possible names of the text columns, the Hub's first.
        labels: Possible names of the label column.
        header: Columns of the official files if they have no header line.
    """

    folder: str
    label_names: tuple[str, ...]
    metric: str
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...] = ("label",)
    header: tuple[str, ...] | None = None


SENTENCES = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")

GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        ("unacceptable", "acceptable"),
        "matthews",
        (("sentence",),),
        header=("source", "label", "star", "sentence"),
    ),
    "sst2": GlueTask("SST-2", ("negative", "positive"), "accuracy", (("sentence",),)),
    "mrpc": GlueTask(
        "MRPC",
        ("not_equivalent", "equivalent"),
        "accuracy",
        (SENTENCES, ("#1 String", "#2 String")),
        ("label", "Quality"),
    ),
    "stsb": GlueTask("STS-B", (), "pearson", (SENTENCES,), ("label", "score")),
    "qqp": GlueTask(
        "QQP", ("not_duplicate", "duplicate"), "accuracy", (("question1", "question2"),), ("label", "is_duplicate")
    ),
    "mnli": GlueTask(
        "MNLI",
        ("entailment", "neutral", "contradiction"),
        "accuracy",
        (("premise", "hypothesis"), SENTENCES),
        ("label", "gold_label"),
    ),
    "qnli": GlueTask("QNLI", ENTAILED, "accuracy", (("question", "sentence"),)),
    "rte": GlueTask("RTE", ENTAILED, "accuracy", (SENTENCES,)),
}


def glue_columns(task: str, table: Dataset, *, source: str) -> dict[str, str | None]:
    """Return a table's `text_column`, `text_pair_column` (`None` for single sentences) and `label_column`.

    Raises:
        BALoraError: If the table has none of the task's formats.
    """
    known = GLUE[task]
    plain = ("text_a", "text_b")[: len(known.texts[0])]
    texts = next((names for names in (*known.texts, plain) if set(names) <= set(table.column_names)), None)
    label = next((name for name in known.labels if name in table.column_names), None)
    if texts is None or label is None:
        raise BALoraError(
            f"{source}: not GLUE's {known.folder}; its texts are in {' or '.join(map(repr, (*known.texts, plain)))} "
            f"and its labels in {' or '.join(map(repr, known.labels))}, and there are {column_list(table)}"
        )
    return {"text_column": texts[0], "text_pair_column": (*texts, None)[1], "label_column": label}


def glue_header(task: str, file: str | None) -> list[str] | None:
    """Return the column names of an official file without a header line, otherwise `None`."""
    header = GLUE[task].header
    return list(header) if header is not None and file is not None and file.lower().endswith(".tsv") else None


def glue_files(task: str, folder: str) -> dict[str, str]:
    """Return the official files by recipe key: training, validation, and MNLI's second validation file."""
    inside = Path(folder) / GLUE[task].folder
    validation = {"validation_file": "dev.tsv"}
    if task == "mnli":
        validation = {"validation_file": "dev_matched.tsv", "mismatched_file": "dev_mismatched.tsv"}
    return {key: str(inside / name) for key, name in {"train_file": "train.tsv", **validation}.items()}


def glue_on_hub(task: str) -> dict[str, str]:
    """Return the Hub's dataset and splits by recipe key."""
    splits = {"validation_split": "validation_matched", "mismatched_split": "validation_mismatched"}
    return {"dataset_name": HUB_NAME, "dataset_config_name": task, **(splits if task == "mnli" else {})}
