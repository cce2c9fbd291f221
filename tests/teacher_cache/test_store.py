"""Feature store: round trips for every memory limit and order, after a kill, and between processes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.teacher_cache import FeatureStore


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def rows(numbers, width: int = 3) -> torch.Tensor:
    return torch.tensor([[float(n)] * width for n in numbers])


def store(directory, memory_mb: float = 1.0, writer: str = "0") -> FeatureStore:
    return FeatureStore(directory, 3, torch.float32, memory_mb=memory_mb, writer=writer)


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
        assert torch.equal(features.take([key(n) for n in batch]), rows(batch))
    assert len(features) == len({n for batch in batches for n in batch})
    assert len(features._memory) <= memory_mb * 2**20 / 28


def test_folder_is_reopened_after_a_partial_record(tmp_path):
    store(tmp_path).add([key(1), key(2)], rows([1, 2]))
    with open(tmp_path / "0.features", "ab") as file:
        file.write(b"half of one")
    again = store(tmp_path, memory_mb=0)
    assert len(again) == 2
    again.add([key(3)], rows([3]))
    assert torch.equal(store(tmp_path).take([key(3), key(1)]), rows([3, 1]))


def test_processes_read_the_features_of_others(tmp_path):
    first, second = store(tmp_path, writer="0"), store(tmp_path, memory_mb=0, writer="1")
    first.add([key(1)], rows([1]))
    assert second.missing([key(1), key(2)]) == [1]
    second.add([key(2)], rows([2]))
    assert first.missing([key(2)]) == []
    assert torch.equal(first.take([key(2)]), rows([2]))
    assert torch.equal(second.take([key(1)]), rows([1]))
