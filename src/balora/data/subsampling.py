"""Leave training rows out, until classes have a given ratio or each hour, day, week or month has few rows.

For studies of class imbalance (1:1:1 against 100:10:1) and of how densely data must be sampled in time.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
from datasets import Dataset

from balora.data.columns import column_values, row_error, shortened
from balora.errors import BALoraError

#: The name of a time's bucket, by frequency; names sort in the order of time.
BUCKETS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda time: time.isoformat()[:13],
    "daily": lambda time: time.isoformat()[:10],
    "weekly": lambda time: "{:04}-W{:02}".format(*time.isocalendar()),
    "monthly": lambda time: time.isoformat()[:7],
}


def subsample_to_ratio(
    dataset: Dataset,
    ratio: Sequence[float],
    *,
    seed: int,
    source: str,
    label_names: list[str] | None = None,
    total: int | None = None,
) -> Dataset:
    """Drop rows until the classes have a given ratio.

    Class c keeps round(s·ratio_c) rows, at least one, with one scale s for all classes (Webster's apportionment): the
    largest s for which every class has enough rows, or the one that gives `total` rows. A higher total keeps all rows
    of a lower one with the same seed.

    Args:
        dataset: Rows from `balora.data.to_classification_rows`.
        ratio: A positive number per class, by class id; only the proportions count. Equal numbers balance.
        seed: Seed of the draw of each class. The global generators are not used.
        source: File or Hub name of the rows, for errors.
        label_names: Names by class id. Default: the highest id determines the number of classes.
        total: Exact number of rows to keep; by default as many as possible.

    Returns:
        The kept rows, in their order.

    Raises:
        BALoraError: If the labels are a regression's numbers, the ratio is invalid, a class has no rows, or there are
            too few rows for `total`.
    """
    labels = np.asarray(column_values(dataset, "label", source=source))
    if label_names == [] or not np.issubdtype(labels.dtype, np.integer):
        raise BALoraError(f"{source}: the labels are a regression's numbers; a class ratio needs classes")
    classes = int(labels.max()) + 1 if label_names is None else len(label_names)
    _check_ratio(ratio, classes, source)
    available = np.bincount(labels, minlength=classes)
    if not available.all():
        absent = int(available.argmin())
        name = "" if label_names is None else f" ({label_names[absent]!r})"
        raise BALoraError(f"{source}: no row has class {absent}{name}; every class of the ratio needs one")
    counts = _apportion(available, np.asarray(ratio, dtype=float), total, source)
    generator = np.random.default_rng(seed)
    # The whole class is shuffled, so that the first rows do not depend on how many are kept.
    shuffled = [generator.permutation(np.flatnonzero(labels == c)) for c in range(classes)]
    kept = np.concatenate([rows[:count] for rows, count in zip(shuffled, counts, strict=True)])
    return dataset.select(np.sort(kept))


def _check_ratio(ratio: Sequence[float], classes: int, source: str) -> None:
    if len(ratio) != classes:
        raise BALoraError(f"{source}: ratio has {len(ratio)} numbers for {classes} classes; give one per class id")
    wrong = next((share for share in ratio if not (0 < share < math.inf)), None)
    if wrong is not None:
        raise BALoraError(f"{source}: ratio has {wrong}; every class needs a positive number")


def _apportion(available: np.ndarray, ratio: np.ndarray, total: int | None, source: str) -> np.ndarray:
    """Return the number of rows to keep of each class, `(D,)`.

    A class gets its row k + 1 at the scale (k + ½)/ratio, from which s·ratio is rounded up.
    """
    classes = np.repeat(np.arange(len(ratio)), available - 1)  # all but the first row of a class, which is kept
    due = np.concatenate([(np.arange(1, n) + 0.5) / share for n, share in zip(available, ratio, strict=True)])
    attainable = due <= (available / ratio).min()
    most = len(ratio) + int(attainable.sum())
    if total is None:
        total = most
    if not len(ratio) <= total <= most:
        raise BALoraError(
            f"{source}: total is {total}; at this ratio the rows give from {len(ratio)} (one of each class) to {most}"
        )
    first = np.argsort(due, kind="stable")[: total - len(ratio)]
    return 1 + np.bincount(classes[first], minlength=len(ratio))


def thin_by_time(
    dataset: Dataset,
    frequency: str,
    *,
    seed: int,
    source: str,
    column: str = "created_date",
    per_bucket: int = 1,
) -> Dataset:
    """Keep a few rows of each hour, day, week or month, drawn without replacement.

    Buckets are the calendar's in UTC; weeks are those of ISO 8601, which begin on Mondays. All rows are shuffled once
    by the seed, and the first of each bucket are kept. So a higher `per_bucket` keeps all rows of a lower one with the
    same seed, hourly rows include the daily ones, and daily rows the weekly and the monthly ones.

    Args:
        dataset: Rows with a time.
        frequency: One of `BUCKETS`.
        seed: Seed of the draw. The global generators are not used.
        source: File or Hub name of the rows, for errors.
        column: Column of times: datetimes, or ISO 8601 text for `datetime.fromisoformat`, optionally with a final `Z`.
            Times without a time zone are UTC.
        per_bucket: Largest number of rows to keep of each bucket.

    Returns:
        The kept rows, in their order.

    Raises:
        BALoraError: If the frequency is unknown, `per_bucket` is below 1, or the time of a row cannot be read.
    """
    if per_bucket < 1:
        raise BALoraError(f"per_bucket: {per_bucket} keeps nothing; use at least 1")
    buckets = time_buckets(dataset, frequency, source=source, column=column)
    taken: Counter[str] = Counter()
    kept = []
    for row in np.random.default_rng(seed).permutation(len(buckets)):
        taken[buckets[row]] += 1
        if taken[buckets[row]] <= per_bucket:
            kept.append(row)
    return dataset.select(np.sort(kept))


def time_buckets(dataset: Dataset, frequency: str, *, source: str, column: str) -> list[str]:
    """Return the name of each row's bucket: `2023-02-05T14`, `2023-02-05`, `2023-W05` or `2023-02`."""
    if frequency not in BUCKETS:
        raise BALoraError(f"frequency: {frequency!r} is unknown; use one of {', '.join(BUCKETS)}")
    values = column_values(dataset, column, source=source)
    name_of = BUCKETS[frequency]
    return [name_of(_time(value, source, row, column)) for row, value in enumerate(values, start=1)]


def _time(value: Any, source: str, row: int, column: str) -> datetime:
    if value is None:
        raise row_error(source, row, column, "is missing")
    try:
        time = value if isinstance(value, datetime) else datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))
        return (time if time.tzinfo else time.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (TypeError, ValueError, OverflowError) as error:
        problem = f"expected a time such as 2023-02-05T14:23:50+00:00, found {shortened(value)}"
        raise row_error(source, row, column, problem) from error
