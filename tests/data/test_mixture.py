"""Mixtures of tasks: exact counts over an epoch, and the same rows each time."""

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.data import mix_tasks, stack_tasks
from balora.errors import BALoraError

few = settings(max_examples=30, deadline=None)
PARTS = st.integers(0, 20) | st.floats(0, 1).map(lambda part: round(part, 3))


@st.composite
def tasks_and_ratios(draw):
    """Draw sizes of 1 to 4 tasks and a ratio, at least one number of which is positive."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    sizes = {name: draw(st.integers(1, 30)) for name in names}
    ratio = {name: draw(PARTS) for name in draw(st.permutations(names))}
    if not any(ratio.values()):
        ratio[names[0]] = 1
    return sizes, ratio


def sets_of(sizes):
    return {name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(size)]}) for name, size in sizes.items()}


def naive_counts(ratio, total):
    """Compute the largest remainder row by row, with ratios in integers of 1/10,000."""
    parts = {name: Fraction(round(part * 10_000)) for name, part in ratio.items()}
    whole = sum(parts.values())
    counts = {name: int(total * part / whole) for name, part in parts.items()}
    owed = {name: total * part / whole - counts[name] for name, part in parts.items()}
    while sum(counts.values()) < total:
        most = max(owed.values())
        name = next(name for name in ratio if owed[name] == most)
        counts[name] += 1
        owed[name] -= 1
    return counts


def is_even(occurrences, size, count):
    """Return whether `size` rows occur `count` times in all, with numbers that differ by at most one."""
    numbers = [occurrences.get(row, 0) for row in range(size)]
    return sum(numbers) == count and max(numbers) - min(numbers) <= 1


@few
@given(tasks_and_ratios(), st.integers(1, 100), st.integers(0, 9))
def test_an_epoch_has_exactly_its_counts(drawn, total, seed):
    sizes, ratio = drawn
    rows = mix_tasks(sets_of(sizes), ratio, total=total, seed=seed)
    assert len(rows) == total
    counts = Counter(rows["task"])
    assert {name: counts[name] for name in ratio} == naive_counts(ratio, total)
    texts = Counter(rows["text"])
    for name, size in sizes.items():
        assert is_even({i: texts[f"{name} {i}"] for i in range(size)}, size, counts[name])
    assert all(text.split()[0] == task for text, task in zip(rows["text"], rows["task"], strict=True))


@few
@given(tasks_and_ratios())
def test_the_default_total_is_the_largest_without_repeats(drawn):
    sizes, ratio = drawn
    rows = mix_tasks(sets_of(sizes), ratio, seed=1)
    assert len(set(rows["text"])) == len(rows)
    # One row more would, before rounding, ask some task for more than it has.
    whole = sum(Fraction(str(part)) for part in ratio.values())
    assert any((len(rows) + 1) * Fraction(str(ratio[name])) / whole > sizes[name] for name in sizes)


@pytest.mark.parametrize(
    ("ratio", "total", "counts"),
    [
        ({"primary": 0.3, "auxiliary": 0.7}, 10, (3, 7)),
        ({"primary": 0.5, "auxiliary": 0.5}, 11, (6, 5)),  # a tie, to the one named first
        ({"auxiliary": 0.5, "primary": 0.5}, 11, (5, 6)),
        ({"primary": 1, "auxiliary": 2}, 100, (33, 67)),
        ({"primary": 0.7, "auxiliary": 0}, 5, (5, 0)),
        ({"primary": 0.3, "auxiliary": 0.7}, None, (12, 28)),  # 40 auxiliary rows would do for 57, 12 primary for 40
        ({"primary": 0.1, "auxiliary": 0.9}, None, (4, 40)),  # 44.4 rows: 4.4 and 39.6
    ],
)
def test_counts(ratio, total, counts):
    rows = mix_tasks(sets_of({"primary": 12, "auxiliary": 40}), ratio, total=total, seed=1)
    assert (rows["task"][:].count("primary"), rows["task"][:].count("auxiliary")) == counts


def test_a_task_without_a_share_may_be_empty():
    sets = {**sets_of({"a": 3}), "b": sets_of({"b": 1})["b"].select([])}
    assert sorted(mix_tasks(sets, {"a": 1, "b": 0}, seed=1)["text"]) == ["a 0", "a 1", "a 2"]


def test_rows_depend_on_seed_and_epoch_but_not_on_global_generators():
    sizes, ratio = {"a": 40, "b": 60}, {"a": 0.5, "b": 0.5}

    def texts(**settings):
        return mix_tasks(sets_of(sizes), ratio, **{"seed": 1, "total": 60, **settings})["text"][:]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = texts()
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert texts() == texts(epoch=0) == first
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

    for other in (texts(seed=2), texts(epoch=1)):
        assert other != first
        assert set(other) != set(first)


def test_tasks_do_not_come_in_blocks():
    mixed = mix_tasks(sets_of({"a": 400, "b": 400}), {"a": 1, "b": 1}, seed=1)
    changes = sum(one != other for one, other in itertools.pairwise(mixed["task"]))
    assert 0.3 < changes / len(mixed) < 0.7  # half of them where each is drawn
    own = [text for text in mixed["text"] if text.startswith("a")]
    assert own != sorted(own, key=lambda text: int(text.split()[1]))


def test_stacked_rows_keep_their_order_and_task():
    rows = stack_tasks(sets_of({"b": 2, "a": 1}))
    assert rows.to_dict() == {"text": ["b 0", "b 1", "a 0"], "task": ["b", "b", "a"]}


@pytest.mark.parametrize(
    ("ratio", "options", "message"),
    [
        ({"a": 1}, {}, "ratio names 'a' and the tasks are 'a', 'b'; give each task one number"),
        ({"a": 1, "b": 1, "c": 1}, {}, "ratio names 'a', 'b', 'c' and the tasks are"),
        ({"a": -1, "b": 1}, {}, "'a' has -1 in the ratio"),
        ({"a": 1, "b": math.nan}, {}, "'b' has nan in the ratio"),
        ({"a": 1, "b": math.inf}, {}, "'b' has inf in the ratio"),
        ({"a": 0, "b": 0}, {}, "every number of the ratio is 0"),
        ({"a": 1, "b": 1}, {"total": 0}, "total is 0; the epoch needs at least 1 row"),
    ],
)
def test_errors_of_mixtures(ratio, options, message):
    with pytest.raises(BALoraError, match=f"^mixture: .*{message}"):
        mix_tasks(sets_of({"a": 3, "b": 3}), ratio, seed=1, **options)


def test_errors_of_stacking():
    one, two = sets_of({"a": 1, "b": 1}).values()
    with pytest.raises(BALoraError, match="no tasks"):
        stack_tasks({})
    with pytest.raises(BALoraError, match="'a' has a column 'task' already"):
        stack_tasks({"a": one.add_column("task", ["x"])})
    with pytest.raises(BALoraError, match=r"column 'more' is absent in 'a' and Value\('int64'\) in 'b'"):
        stack_tasks({"a": one, "b": two.add_column("more", [1])})
    with pytest.raises(BALoraError, match=r"column 'text' is Value\('string'\) in 'a' and Value\('int64'\) in 'b'"):
        stack_tasks({"a": one, "b": Dataset.from_dict({"text": [1]})})
    with pytest.raises(BALoraError, match="'b' has no rows; give it 0 in the ratio, or rows"):
        mix_tasks({"a": one, "b": two.select([])}, {"a": 1, "b": 1}, seed=1)
