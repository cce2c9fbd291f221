"""Rows for sequence classification and regression: text, perhaps a second text, and a label."""

from datasets import ClassLabel, Dataset

from balora.data.columns import check_strings, column_list, column_values, row_error
from balora.data.labels import read_labels
from balora.errors import BALoraError

#: Pairs that common tasks (GLUE and its kin) and Transformers name their texts by, then single texts.
TEXT_COLUMNS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("text", "text_pair"),
    ("text",),
    ("sentence",),
)


def to_classification_rows(
    dataset: Dataset,
    *,
    source: str,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str = "label",
    label_names: list[str] | None = None,
    num_labels: int | None = None,
) -> tuple[Dataset, list[str]]:
    """Check a table and reduce it to `text`, `text_pair` where there is one, and `label`.

    Labels are integers, strings of digits, names, or real numbers. Integers from 0 are class ids; names get ids in
    sorted order; real numbers (at least one written with a fraction or exponent) make it a regression. Give the
    evaluation set the `label_names` that the training set returned, so that ids mean the same in both.

    Args:
        dataset: The table.
        source: File or Hub name it came from, for errors.
        text_column: Column that becomes `text`. Where it is not named, texts are recognised by `TEXT_COLUMNS`.
        text_pair_column: Column that becomes `text_pair`; needs `text_column`.
        label_column: Column that becomes `label`.
        label_names: Names by class id; an empty list for regression. Default: the table's own if it has a
            `ClassLabel`, else as read from the labels.
        num_labels: Number of classes, 1 for regression. Needed where the rows do not show every class.

    Returns:
        The same rows in the same order with `label` an id (int64) or a number (float64), and the names by class id, an
        empty list for regression.

    Raises:
        BALoraError: If a column is absent or not clear, a text is missing, or a label is outside of the names.
    """
    columns = _choose_text_columns(dataset, text_column, text_pair_column, source)
    rows = {key: column_values(dataset, column, source=source) for key, column in columns.items()}
    for key, column in columns.items():
        check_strings(rows[key], source=source, column=column, blank=True)
    for number, texts in enumerate(zip(*rows.values(), strict=True), start=1):
        if not any(text.strip() for text in texts):
            raise row_error(source, number, columns["text"], "is empty")
    labels = column_values(dataset, label_column, source=source)
    feature = dataset.features[label_column]
    if label_names is None and isinstance(feature, ClassLabel):
        label_names = feature.names
    rows["label"], label_names = read_labels(
        labels, source=source, column=label_column, label_names=label_names, num_labels=num_labels
    )
    return Dataset.from_dict(rows), label_names


def _choose_text_columns(dataset: Dataset, text: str | None, pair: str | None, source: str) -> dict[str, str]:
    """`text`, and `text_pair` where there is one, each with the column it is read from."""
    if text is None and pair is not None:
        raise BALoraError(f"{source}: text_pair_column is named without text_column; name both")
    if text is not None:
        return {"text": text} if pair is None else {"text": text, "text_pair": pair}
    present = [set(form) for form in TEXT_COLUMNS if set(form) <= set(dataset.column_names)]
    # A lone `sentence` beside its `question` is half of a pair, not a form of its own.
    found = [form for form in TEXT_COLUMNS if set(form) in present and not any(set(form) < other for other in present)]
    if len(found) != 1:
        problem = "no known text column" if not found else "more than one way to read the texts"
        raise BALoraError(
            f"{source}: {problem} among the columns {column_list(dataset)}; name it with text_column "
            "(and text_pair_column for the second text)"
        )
    return dict(zip(("text", "text_pair"), found[0], strict=False))
