"""Rows thinned out in time: at most so many from each hour, day, week or month.

For studies of how densely data must be sampled: the same set, hourly to monthly.
"""

import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
from datasets import Dataset

from balora.data.columns import column_values, row_error, shortened
from balora.errors import BALoraError

#: How each frequency names the bucket that a time falls into; names sort as times do.
BUCKETS: dict[str, Callable[[datetime], str]] = {
    "hourly": lambda time: time.isoformat()[:13],
    "daily": lambda time: time.isoformat()[:10],
    "weekly": lambda time: "{:04}-W{:02}".format(*time.isocalendar()),
    "monthly": lambda time: time.isoformat()[:7],
}


def thin_by_time(
    dataset: Dataset,
    frequency: str,
    *,
    seed: int,
    source: str,
    column: str = "created_date",
    per_bucket: int = 1,
) -> Dataset:
    """Keep a few rows of each bucket of time, drawn without replacement.

    Buckets are those of the calendar in UTC, weeks those of ISO 8601, which begin on Mondays. All rows are shuffled
    once by the seed, and the first of each bucket stay: a higher `per_bucket` holds all rows of a lower one with the
    same seed, and each hour's choice holds the day's, and each day's the week's and the month's.

    Args:
        dataset: Any rows with a time.
        frequency: One of `BUCKETS`.
        seed: Chooses the rows. The global generators play no part.
        source: File or Hub name the rows came from, for errors.
        column: The time of each row: a datetime, or text in ISO 8601 as `datetime.fromisoformat` and a final `Z` have
            it. Without a time zone it is UTC.
        per_bucket: Rows to keep of each bucket; one that has fewer keeps all.

    Returns:
        The rows kept, in their order.

    Raises:
        BALoraError: If the frequency is unknown, `per_bucket` is below 1, or a row has no time that can be read.
    """
    if per_bucket < 1:
        raise BALoraError(f"per_bucket: {per_bucket} keeps nothing; use at least 1")
    buckets = _buckets(dataset, frequency, source, column)
    taken: Counter[str] = Counter()
    kept = []
    for row in np.random.default_rng(seed).permutation(len(buckets)):
        taken[buckets[row]] += 1
        if taken[buckets[row]] <= per_bucket:
            kept.append(row)
    return dataset.select(np.sort(kept))


def count_by_time(dataset: Dataset, frequency: str, *, source: str, column: str = "created_date") -> dict[str, int]:
    """Rows in each bucket of time that has any, by its name (`2023-02-05T14`, `2023-02-05`, `2023-W05`, `2023-02`).

    Args:
        dataset: As in `thin_by_time`.
        frequency: As in `thin_by_time`.
        source: As in `thin_by_time`.
        column: As in `thin_by_time`.

    Returns:
        Counts, the earliest bucket first.

    Raises:
        BALoraError: If the frequency is unknown, or a row has no time that can be read.
    """
    return dict(sorted(Counter(_buckets(dataset, frequency, source, column)).items()))


def _buckets(dataset: Dataset, frequency: str, source: str, column: str) -> list[str]:
    """The name of each row's bucket."""
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
