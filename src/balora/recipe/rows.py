"""Settings of one task's rows: the files or Hub dataset, the columns, and what is held out and thinned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from balora.config.ranges import Range
from balora.data.glue import GLUE
from balora.errors import BALoraError
from balora.recipe.paths import RecipePath

#: Pairs of settings that each name the same rows, so that one of the two would be ignored.
ALTERNATIVES = (
    ("validation_file", "validation_share"),
    ("validation_file", "validation_split"),
    ("validation_split", "validation_share"),
    ("mismatched_file", "mismatched_split"),
    ("mismatched_file", "validation_share"),
    ("mismatched_split", "validation_share"),
)


@dataclass
class Rows:
    """The rows: where they are and how they are read."""

    glue_task: str | None = None
    """GLUE task: cola, sst2, mrpc, stsb, qqp, mnli, qnli or rte. Names columns, labels and metric, and the Hub's rows
    where no file is named."""
    glue_dir: RecipePath | None = None
    """Folder of the official GLUE download (CoLA/train.tsv …), instead of the Hub."""
    dataset_name: str | None = None
    """Hub dataset, instead of files."""
    dataset_config_name: str | None = None
    """Configuration of the Hub dataset."""
    train_split: str = "train"
    """Split of the Hub dataset to train on."""
    validation_split: str = "validation"
    """Split of the Hub dataset to evaluate on."""
    train_file: RecipePath | None = None
    """Local .jsonl, .json, .csv, .tsv, .parquet or .txt file to train on."""
    validation_file: RecipePath | None = None
    """Local file to evaluate on."""
    validation_share: Annotated[float, Range(least=0, below=1)] | None = None
    """Share of the training rows to hold out and evaluate on, where there is no validation set. If null, `balora
    compare` holds out 0.1 when there is nothing else to measure quality on; 0 holds out nothing."""
    validation_group_column: str | None = None
    """Column whose values are held out whole, such as a template's or a user's, so that no evaluated row is akin to a
    training row."""
    mismatched_split: str | None = None
    """Second split to evaluate on (MNLI's); its metrics end in _mismatched."""
    mismatched_file: RecipePath | None = None
    """Second file to evaluate on, likewise."""
    column_names: list[str] | None = None
    """Names for the columns of a file that has no header row."""
    prompt_column: str | None = None
    """Prompt of a prompt–completion row."""
    completion_column: str | None = None
    """Completion of a prompt–completion row."""
    prompt_template: str | None = None
    """Text around the prompt, with `{prompt}` in it."""
    oasst: dict | None = None
    """Read message trees as OASST1 publishes them, made into conversations by these settings of
    `balora.data.oasst_conversations`: languages, min_quality, max_rank, deleted, failed_review, synthetic; `{}` for
    its defaults. A validation_share is then of trees."""
    messages_column: str | None = None
    """Conversation of a chat row; the tokenizer's chat template renders it, and assistant_only_loss says which of its
    messages are trained on."""
    text_column: str | None = None
    """Text of a plain-text or classification row."""
    text_pair_column: str | None = None
    """Second text of a classification row."""
    label_column: str | None = None
    """Label of a classification row."""
    label_names: list[str | int] | None = None
    """Classes by id, such as [1, 2, 3, 4, 5] for stars; [] reads numbers, for a regression. With null, integers from 0
    are ids, numbers with fractions make it a regression, and names get ids in sorted order."""
    drop_empty_rows: bool = False
    """Leave out rows with a missing or blank text, instead of stopping at the first."""
    class_ratio: list[float] | None = None
    """Thin training rows out to this ratio of classes, in order of their ids, such as [100, 10, 1]."""
    time_frequency: Literal["hourly", "daily", "weekly", "monthly"] | None = None
    """Train on one row of each hour, day, week or month; null for all rows."""
    time_column: str = "created_date"
    """Time of a row, in ISO 8601."""

    def check_rows(self) -> None:
        """Validate how rows are found and held out.

        Raises:
            BALoraError: If the GLUE task is unknown, groups are named and nothing is held out, the classes are
                GLUE's, one alone, or given twice, or two settings name the same rows.
        """
        refuse_alternatives(vars(self))
        if self.label_names is not None:
            names = list(map(str, self.label_names))
            if self.glue_task is not None:
                raise BALoraError("label_names: a GLUE task has its own; leave it out")
            if len(names) == 1 or len(set(names)) < len(names):
                raise BALoraError(
                    f"label_names: {names}; give at least two classes, each once, or [] for a regression"
                )
        if self.glue_task is not None and self.glue_task not in GLUE:
            raise BALoraError(f"glue_task: unknown {self.glue_task!r}; there are {', '.join(GLUE)}")
        if self.validation_group_column is not None and not self.validation_share:
            raise BALoraError("validation_group_column: says what is held out together; set validation_share too")


def refuse_alternatives(settings: Mapping[str, Any], where: str = "") -> None:
    """Raise if two settings name the same rows.

    Args:
        settings: Settings of rows by name; those left out have their default.
        where: Text before the settings' names in the error.

    Raises:
        BALoraError: Naming both.
    """
    for names in ALTERNATIVES:
        values = [settings.get(name, getattr(Rows, name)) for name in names]
        if all(value and value != getattr(Rows, name) for name, value in zip(names, values, strict=True)):
            raise BALoraError(f"{where}{', '.join(names)}: give one of the two")


def replaced_alternatives(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of the settings in whose place a task names its own rows, over the study's."""
    replaced = {}
    for names in ALTERNATIVES:
        for name, other in (names, names[::-1]):
            if own.get(name) and other not in own:
                replaced[other] = getattr(Rows, other)
    return replaced
