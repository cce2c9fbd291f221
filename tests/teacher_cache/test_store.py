"""Feature store: round trips for every memory limit and order, after a kill, and between processes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.teacher_cache import FeatureStore


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rows(numbers, width: int = 3) -> list[torch.Tensor]:
    """Build features of several shapes and dtypes."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    return [torch.full((n % 3 + 1, width), float(n), dtype=dtypes[n % 4]) for n in numbers]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(one.dtype == other.dtype and torch.equal(one, other) for one, other in pairs)


def store(directory, memory_mb: float = 1.0, writer: str = "0") -> FeatureStore:
    return FeatureStore(directory, memory_mb=memory_mb, writer=writer)


@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=8), max_size=12), st.sampled_from([0.0, 1e-4, 1.0]))
@settings(max_examples=50, deadline=None)
def test_stored_features_are_returned(batches, memory_mb):
    features = store(None, memory_mb)
    for batch in batches:
        new = features.missing([key(n) for n in batch])
        numbers = [batch[position] for position in new]
        assert len(set(numbers)) == len(numbers)
        if numbers:
            features.add([key(n) for n in numbers], rows(numbers))
        assert same(features.take([key(n) for n in batch]), rows(batch))
    assert len(features) == len({n for batch in batches for n in batch})
    held = sum(feature.nbytes for feature in features._memory.values())
    assert held == features.memory_bytes <= memory_mb * 2**20


@pytest.mark.parametrize("cut", [0, 11, 28, 40])  # in the header, after it, in the numbers
def test_folder_is_reopened_after_a_partial_record(tmp_path, cut):
    store(tmp_path).add([key(1), key(2)], rows([1, 2]))
    whole = (tmp_path / "0.records").read_bytes()
    with open(tmp_path / "0.records", "ab") as file:
        file.write(whole[:cut])
    again = store(tmp_path, memory_mb=0)
    assert len(again) == 2
    again.add([key(3)], rows([3]))
    assert same(store(tmp_path).take([key(3), key(1)]), rows([3, 1]))


def test_processes_read_the_features_of_others(tmp_path):
    first, second = store(tmp_path, writer="0"), store(tmp_path, memory_mb=0, writer="1")
    first.add([key(1)], rows([1]))
    assert second.missing([key(1), key(2)]) == [1]
    second.add([key(2)], rows([2]))
    assert first.missing([key(2)]) == []
    assert same(first.take([key(2)]), rows([2]))
    assert same(second.take([key(1)]), rows([1]))


def test_a_store_of_its_own_does_not_read_others(tmp_path):
    store(tmp_path, writer="1").add([key(1)], rows([1]))
    alone = FeatureStore(tmp_path, memory_mb=1, writer="0", shared=False)
    assert alone.missing([key(1)]) == [0]
    alone.add([key(1)], rows([1]))
    assert same(FeatureStore(tmp_path, memory_mb=0, writer="0", shared=False).take([key(1)]), rows([1]))


def test_a_temporary_store_writes_only_what_does_not_fit_into_memory():
    features = FeatureStore(None, memory_mb=20 / 2**20)
    features.add([key(1), key(4)], [torch.ones(1, 3), torch.ones(2, 3)])
    assert next(features.directory.iterdir()).stat().st_size == 28 + 24
    assert same(features.take([key(4), key(1)]), [torch.ones(2, 3), torch.ones(1, 3)])
