"""Mixtures: exact counts over an epoch, exact ratios in every batch, the same rows each time."""

import itertools
import math
import random
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from balora.data import MixedBatchSampler, mix_tasks, stack_tasks
from balora.errors import BALoraError

few = settings(max_examples=30, deadline=None)
PARTS = st.integers(0, 20) | st.floats(0, 1).map(lambda part: round(part, 3))


@st.composite
def tasks_and_ratios(draw):
    """Sizes of 1 to 4 tasks and a part for each, one of them at least more than nothing."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4, unique=True))
    sizes = {name: draw(st.integers(1, 30)) for name in names}
    ratio = {name: draw(PARTS) for name in draw(st.permutations(names))}
    if not any(ratio.values()):
        ratio[names[0]] = 1
    return sizes, ratio


def sets_of(sizes):
    return {name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(size)]}) for name, size in sizes.items()}


def tasks_of(sizes):
    return [name for name, size in sizes.items() for _ in range(size)]


def naive_counts(ratio, total):
    """Largest remainder, one row after another to whom most is owed, in whole tenths of thousandths."""
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
    """Whether each of `size` rows occurs one of two neighbouring numbers of times, `count` times in all."""
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
@given(tasks_and_ratios(), st.integers(1, 12), st.integers(1, 15), st.integers(0, 9))
def test_every_batch_has_the_ratio_and_the_epoch_exactly(drawn, batch_size, num_batches, seed):
    sizes, ratio = drawn
    tasks = tasks_of(sizes)
    batches = list(MixedBatchSampler(tasks, ratio, batch_size, num_batches=num_batches, seed=seed))
    assert len(batches) == num_batches
    whole = sum(Fraction(str(part)) for part in ratio.values())
    for batch in batches:
        assert len(batch) == batch_size
        counts = Counter(tasks[row] for row in batch)
        for name, part in ratio.items():
            exact = batch_size * Fraction(str(part)) / whole
            assert math.floor(exact) <= counts[name] <= math.ceil(exact)
    seen = Counter(row for batch in batches for row in batch)
    counts = naive_counts(ratio, batch_size * num_batches)
    for name in sizes:
        own = [row for row, task in enumerate(tasks) if task == name]
        assert is_even({i: seen[row] for i, row in enumerate(own)}, len(own), counts[name])


@few
@given(tasks_and_ratios())
def test_by_default_nothing_is_repeated_and_no_more_could_be_had(drawn):
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
    assert len(MixedBatchSampler(["a"] * 3, {"a": 1, "b": 0}, 3, seed=1)) == 1


def test_seeds_and_epochs_choose_and_the_global_generators_do_not():
    sizes, ratio = {"a": 40, "b": 60}, {"a": 0.5, "b": 0.5}

    def texts(**settings):
        return mix_tasks(sets_of(sizes), ratio, **{"seed": 1, "total": 60, **settings})["text"][:]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = texts()
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert texts() == texts(epoch=0) == first
    sampler = MixedBatchSampler(tasks_of(sizes), ratio, 5, seed=1)
    batches = list(sampler)
    assert list(sampler) == list(MixedBatchSampler(tasks_of(sizes), ratio, 5, seed=1)) == batches
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())

    for other in (texts(seed=2), texts(epoch=1)):
        assert other != first
        assert set(other) != set(first)
    sampler.set_epoch(1)
    assert list(sampler) != batches
    sampler.set_epoch(0)
    assert list(sampler) == batches
    assert list(MixedBatchSampler(tasks_of(sizes), ratio, 5, seed=2)) != batches


def test_rows_and_batches_are_shuffled():
    """Neither do tasks come in blocks, within batches or of batches, nor rows in their order."""
    tasks = tasks_of({"a": 400, "b": 400})
    mixed = mix_tasks(sets_of({"a": 400, "b": 400}), {"a": 1, "b": 1}, seed=1)["task"][:]
    batches = list(MixedBatchSampler(tasks, {"a": 1, "b": 1}, 5, seed=1))
    larger = [sum(tasks[row] == "a" for row in batch) == 3 for batch in batches]
    first = [tasks[batch[0]] == "a" for batch in batches]
    for sequence in ([task == "a" for task in mixed], larger, first):
        changes = sum(one != other for one, other in itertools.pairwise(sequence))
        assert 0.3 < changes / len(sequence) < 0.7  # half of them where each is drawn
    own = [row for batch in batches for row in batch if tasks[row] == "a"]
    assert own != sorted(own)


@few
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_processes_divide_the_batches(num_replicas, each, epoch):
    tasks, ratio = tasks_of({"a": 20, "b": 30}), {"a": 0.3, "b": 0.7}
    settings = {"seed": 3, "num_batches": each * num_replicas}
    alone = MixedBatchSampler(tasks, ratio, 4, **settings)
    shards = [
        MixedBatchSampler(tasks, ratio, 4, num_replicas=num_replicas, rank=r, **settings) for r in range(num_replicas)
    ]
    for sampler in (alone, *shards):
        sampler.set_epoch(epoch)
    assert all(len(list(shard)) == len(shard) == each for shard in shards)
    assert [batch for turn in zip(*shards, strict=True) for batch in turn] == list(alone)


def test_by_default_processes_have_equally_many_batches():
    samplers = [MixedBatchSampler(["a"] * 50, {"a": 1}, 4, seed=1, num_replicas=5, rank=r) for r in range(5)]
    assert [len(sampler) for sampler in samplers] == [2] * 5  # 12 batches without repeats, 10 that divide


def test_a_data_loader_under_accelerate_takes_the_batches_and_the_epoch():
    rows = stack_tasks(sets_of({"a": 12, "b": 28}))
    sampler = MixedBatchSampler(rows["task"], {"a": 0.3, "b": 0.7}, 10, seed=1)
    loader = Accelerator(cpu=True).prepare(DataLoader(rows, batch_sampler=sampler))
    epochs = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = [(batch["task"], batch["text"]) for batch in loader]
        assert [Counter(tasks) for tasks, _ in batches] == [{"a": 3, "b": 7}] * 4
        assert len({text for _, texts in batches for text in texts}) == 40
        epochs.append(batches)
    assert epochs[0] != epochs[1]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_batches": 0}, "0 batches of 2 for 1 processes"),
        ({"num_batches": 3, "num_replicas": 2}, "3 batches of 2 for 2 processes; num_batches must be a multiple"),
        ({"num_replicas": 2, "rank": 2}, "rank 2 is not among 2 processes"),
        ({"rank": -1}, "rank -1 is not among 1"),
        ({"batch_size": 9}, "0 batches of 9"),
        ({"ratio": {"a": 1, "b": 1}}, "'b' has no rows"),
        ({"ratio": {"b": 1}}, "the ratio names 'b' and the tasks are 'b', 'a'"),
    ],
)
def test_errors_of_samplers(options, message):
    with pytest.raises(BALoraError, match=f"^mixture: .*{message}"):
        MixedBatchSampler(["a"] * 8, **{"ratio": {"a": 1}, "batch_size": 2, "seed": 1, **options})
