"""Rows thinned by time: at most `per_bucket` rows of each calendar bucket, reproducibly."""

import random
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.data import thin_by_time
from balora.data.subsampling import BUCKETS, time_buckets
from balora.errors import BALoraError

few = settings(max_examples=25, deadline=None)
# A few weeks around a year's end, so that buckets fill and weeks, months and years do not end together.
TIMES = st.datetimes(datetime(2024, 12, 20), datetime(2025, 1, 12)).flatmap(
    lambda time: st.sampled_from([-11, 0, 5.5, 14]).map(
        lambda hours: time.replace(tzinfo=timezone(timedelta(hours=hours)))
    )
)


def naive_bucket(time, frequency):
    """Return the start of the bucket, by arithmetic on days."""
    time = time.astimezone(timezone.utc)
    hour = time.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    monday = day - timedelta(days=day.weekday())
    return {"hourly": hour, "daily": day, "weekly": monday, "monthly": day.replace(day=1)}[frequency]


def rows_of(times):
    return Dataset.from_dict({"row": list(range(len(times))), "created_date": [time.isoformat() for time in times]})


def kept(times, frequency, **options):
    rows = thin_by_time(rows_of(times), frequency, **{"seed": 1, "source": "OASST1", **options})["row"][:]
    assert rows == sorted(set(rows))
    return rows


@few
@given(st.lists(TIMES, min_size=1, max_size=40), st.sampled_from(sorted(BUCKETS)), st.integers(1, 3))
def test_each_bucket_keeps_at_most_per_bucket_rows(times, frequency, per_bucket):
    buckets = defaultdict(list)
    for row, time in enumerate(times):
        buckets[naive_bucket(time, frequency)].append(row)
    rows = kept(times, frequency, per_bucket=per_bucket)
    for inside in buckets.values():
        assert len(set(inside) & set(rows)) == min(per_bucket, len(inside))
    counts = Counter(time_buckets(rows_of(times), frequency, source="OASST1", column="created_date"))
    assert [counts[name] for name in sorted(counts)] == [len(buckets[start]) for start in sorted(buckets)]


@few
@given(st.lists(TIMES, min_size=1, max_size=40), st.integers(0, 99))
def test_lower_frequencies_keep_subsets_of_higher_ones(times, seed):
    hours, days, weeks, months = (
        set(kept(times, frequency, seed=seed)) for frequency in ("hourly", "daily", "weekly", "monthly")
    )
    assert weeks <= days <= hours
    assert months <= days
    assert days <= set(kept(times, "daily", seed=seed, per_bucket=2))


def test_the_rows_depend_on_the_seed_only():
    times = [datetime(2023, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=5 * i) for i in range(60)]
    random.seed(1), np.random.seed(1)
    first = kept(times, "hourly")
    random.seed(2), np.random.seed(2)
    assert kept(times, "hourly") == first
    assert kept(times, "hourly", seed=2) != first
    # Every row of a bucket has its chance, first to last.
    chosen = Counter(row for seed in range(100) for row in kept(times[:5], "daily", seed=seed))
    assert set(chosen) == set(range(5))
    assert all(count < 40 for count in chosen.values())  # of 20 expected, five deviations of 4


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2023-02-05T23:30:00+00:00", ("2023-02-05T23", "2023-02-05", "2023-W05", "2023-02")),
        ("2023-02-05T23:30:00.983374-01:00", ("2023-02-06T00", "2023-02-06", "2023-W06", "2023-02")),
        ("2024-12-31T00:00:00Z", ("2024-12-31T00", "2024-12-31", "2025-W01", "2024-12")),
        ("2023-01-01 12:00", ("2023-01-01T12", "2023-01-01", "2022-W52", "2023-01")),
        ("0987-01-01", ("0987-01-01T00", "0987-01-01", "0987-W01", "0987-01")),
    ],
)
def test_names_of_buckets(text, names):
    rows = Dataset.from_dict({"created_date": [text]})
    frequencies = ("hourly", "daily", "weekly", "monthly")
    assert tuple(time_buckets(rows, f, source="x", column="created_date")[0] for f in frequencies) == names


@pytest.mark.parametrize("type_", ["timestamp[s]", "timestamp[us, tz=UTC]", "timestamp[ns]"])
def test_datetime_columns_are_read(type_):
    times = [datetime(2023, 2, 5, 14), datetime(2023, 2, 5, 15), datetime(2023, 2, 6, 14)]
    rows = Dataset.from_dict({"at": times}, features=Features({"at": Value(type_)}))
    assert time_buckets(rows, "daily", source="x", column="at") == ["2023-02-05", "2023-02-05", "2023-02-06"]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is missing"),
        ("yesterday", "expected a time such as 2023-02-05T14:23:50.00:00, found 'yesterday'"),
        ("", "expected a time such as .*, found ''"),
        ("2023-13-01", "expected a time"),
        ("0001-01-01T00:00:00+05:00", "expected a time"),
    ],
)
def test_an_invalid_time_raises(value, problem):
    rows = Dataset.from_dict({"created_date": ["2023-02-05", value]})
    with pytest.raises(BALoraError, match=f"^a.jsonl, row 2, field 'created_date': {problem}"):
        thin_by_time(rows, "daily", seed=1, source="a.jsonl")


def test_numbers_are_not_times():
    with pytest.raises(BALoraError, match=r"row 1, field 'created_date': expected a time .*, found 1675607030"):
        time_buckets(Dataset.from_dict({"created_date": [1675607030]}), "daily", source="x", column="created_date")


@pytest.mark.parametrize(
    ("frequency", "options", "message"),
    [
        ("yearly", {}, "^frequency: 'yearly' is unknown; use one of hourly, daily, weekly, monthly"),
        ("daily", {"per_bucket": 0}, "^per_bucket: 0 keeps nothing"),
        ("daily", {"column": "at"}, "^x: no column 'at'; it has 'created_date'"),
    ],
)
def test_settings(frequency, options, message):
    with pytest.raises(BALoraError, match=message):
        thin_by_time(Dataset.from_dict({"created_date": ["2023-02-05"]}), frequency, seed=1, source="x", **options)
