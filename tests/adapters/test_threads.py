"""Pieces of work in threads: order, errors, an interrupt, and the number of threads afterwards."""

import threading
import time

import pytest
import torch

from balora.utils import threads
from balora.utils.threads import map_in_threads


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_results_keep_their_order_and_each_has_one_thread():
    def piece(i: int) -> tuple[int, int]:
        time.sleep(0.01 * (i % 3))
        return i, torch.get_num_threads()

    assert list(map_in_threads(piece, range(7), 1)) == [(i, 1) for i in range(7)]


def test_a_large_piece_has_all_threads(monkeypatch):
    monkeypatch.setattr(threads, "WORKING_MEMORY", 100)
    used = set()

    def piece(i: int) -> int:
        used.add(threading.get_ident())
        return torch.get_num_threads()

    assert list(map_in_threads(piece, range(5), 101)) == [2] * 5
    assert len(used) == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_work(kind):
    started = []

    def piece(i: int) -> int:
        started.append(i)
        if i == 1:
            raise kind("stop")
        time.sleep(0.02)
        return i

    with pytest.raises(kind):
        list(map_in_threads(piece, range(100), 1))
    assert len(started) < 10
