"""The plan of an audit: its parts, with every file read and checked before a model is loaded."""

from collections.abc import Sequence

from datasets import Dataset

from balora.audit.benchmarks import check_benchmarks, parts_of_benchmarks
from balora.audit.kinds import CAUSAL, CLASSIFIER
from balora.audit.models import check_dtype
from balora.audit.parts import Part, part_of_weights, parts_of_rows, parts_of_texts, parts_of_words
from balora.audit.settings import AuditSettings
from balora.data import expand_path, load_table, to_classification_rows
from balora.data.columns import check_strings, column_values
from balora.errors import BALoraError

#: Kinds of model that a setting is for; a benchmark's are in the registry.
FOR = {
    "wikitext2": (CAUSAL,),
    "prompts": (CAUSAL,),
    "label_column": (CLASSIFIER,),
    "label_names": (CLASSIFIER,),
    "text_pair_column": (CLASSIFIER,),
}
#: Settings that must be at least so much, where they are given.
LEAST = {"own_texts": 0, "own_length": 2, "max_samples": 1, "max_length": 2, "max_matrices": 1, "batch_size": 1}
#: Settings of the rows of `data_file`.
OF_ROWS = ("data_split", "text_pair_column", "label_column")


def check_settings(settings: AuditSettings) -> None:
    """Validate the settings that need no file.

    Raises:
        BALoraError: If a number is out of range, or a setting lacks the one that it belongs to.
    """
    if settings.output_dir is None:
        raise BALoraError("output_dir: missing; add --output_dir DIR")
    check_dtype(settings.dtype)
    for name, least in LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            raise BALoraError(f"{name}: {value}; use at least {least}")
    for name in OF_ROWS:
        if getattr(settings, name) is not None and settings.data_file is None:
            raise BALoraError(f"{name}: is of data_file, and there is none; give it")


def plan(settings: AuditSettings, kind: str, label_names: Sequence[str]) -> list[Part]:
    """Return the parts of an audit of this kind of model.

    Args:
        settings: What is asked for.
        kind: One of `balora.audit.kinds.KINDS`' values.
        label_names: Of a classifier, by its configuration.

    Raises:
        BALoraError: If a file is wrong, or is of no use for such a model.
    """
    for setting, kinds in FOR.items():
        if getattr(settings, setting) and kind not in kinds:
            raise BALoraError(f"{setting}: is for a {' or '.join(kinds)}, and this is a {kind}; leave it out")
    check_benchmarks(settings, kind)
    if settings.label_names is not None and len(settings.label_names) != len(label_names):
        raise BALoraError(
            f"label_names: {len(settings.label_names)} for the model's {len(label_names)} classes; name each"
        )
    names = settings.label_names or label_names
    rows = _rows(settings, names) if settings.data_file else None
    parts = []
    if kind == CAUSAL:
        parts += parts_of_texts(settings, rows) + parts_of_words(settings, rows)
    elif rows is not None:
        parts += parts_of_rows(settings, rows, kind)
    if settings.adapter is not None:
        parts.append(part_of_weights(settings))
    for part in parts_of_benchmarks(settings, kind, names):
        if part.name in (own.name for own in parts):
            raise BALoraError(f"benchmarks: {part.name} is also given by {part.name}; give it once")
        parts.append(part)
    if not parts:
        raise BALoraError(f"nothing to measure of a {kind} without texts: give data_file, or a benchmark's file")
    return parts


def _rows(settings: AuditSettings, label_names: Sequence[str]) -> Dataset:
    """Read `data_file` into `text`, with `text_pair` and `label` where there are such."""
    source = expand_path(settings.data_file)
    table = load_table(source, split=settings.data_split)
    if settings.label_column is not None:
        rows, _ = to_classification_rows(
            table,
            source=source,
            text_column=settings.text_column,
            text_pair_column=settings.text_pair_column,
            label_column=settings.label_column,
            label_names=list(label_names),
        )
    else:
        columns = {"text": settings.text_column, "text_pair": settings.text_pair_column}
        values = {key: column_values(table, name, source=source) for key, name in columns.items() if name is not None}
        for key, texts in values.items():
            check_strings(texts, source=source, column=columns[key])
        rows = Dataset.from_dict(values)
    return rows.select(range(min(len(rows), settings.max_samples or len(rows))))
