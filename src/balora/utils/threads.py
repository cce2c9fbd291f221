"""Independent pieces of linear algebra in threads: one matrix a core is faster than all cores on one matrix."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
#: Bytes of work in progress at a time, beyond which fewer pieces share the cores.
WORKING_MEMORY = 2**31


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], item_bytes: int) -> Iterator[Result]:
    """Yield `function` of each item, in order, computed in as many threads as torch uses.

    Decompositions scale badly over threads, and on a busy machine OpenMP's threads wait for one another. A piece has
    a single thread where memory allows, so that its result does not depend on the number of cores.

    Args:
        function: Called in threads, where gradients are on; torch must spend its time outside Python's lock.
        items: The pieces.
        item_bytes: Working memory of the largest piece.
    """
    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(items), WORKING_MEMORY // item_bytes))
    torch.set_num_threads(max(1, threads // workers) if len(items) > 1 else threads)
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
