"""`FeatureStore`: features by key, in memory up to a limit, and all of them in files.

Each process appends records of key and feature to its own file and reads the files of all. A partial record that a
killed process left is truncated when its file is opened again.
"""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KEY_BYTES = 16
SUFFIX = ".features"


class FeatureStore:
    """Vectors of `width` floats by key.

    Args:
        directory: Folder of the files, created if absent and shared by processes; `None` for a temporary one.
        width: Number of floats in a feature.
        dtype: float32 or float64.
        memory_mb: Memory limit in MB (2²⁰ bytes) for features; the rest is read from memory-mapped files.
        writer: Name of this process's file.
    """

    def __init__(
        self, directory: Path | None, width: int, dtype: torch.dtype, *, memory_mb: float, writer: str = "0"
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="balora-") if directory is None else None
        self.directory = Path(self._temporary.name) if directory is None else directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.dtype = dtype
        number = np.float64 if dtype == torch.float64 else np.float32
        self._record = np.dtype([("key", f"V{KEY_BYTES}"), ("feature", number, (width,))])
        self._max_in_memory = int(memory_mb * 2**20 / self._record.itemsize)
        self._memory: dict[bytes, np.ndarray] = {}
        self._places: dict[bytes, tuple[str, int]] = {}  # file and row of features that are not in memory
        self._maps: dict[str, np.ndarray] = {}
        own = self.directory / f"{writer}{SUFFIX}"
        if own.exists():
            os.truncate(own, own.stat().st_size // self._record.itemsize * self._record.itemsize)
        self._own = open(own, "ab", buffering=0)  # noqa: SIM115 - stays open for the store's lifetime
        self.read_files()

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def read_files(self) -> None:
        """Index the records that any process has written since the last call."""
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            known = len(self._maps.get(path.name, ()))
            if path.stat().st_size // self._record.itemsize > known:
                for row, record in enumerate(self._map(path.name)[known:], known):
                    self._insert(record["key"].tobytes(), record["feature"], path.name, row)

    def missing(self, keys: list[bytes]) -> list[int]:
        """Return the positions of keys without a feature, one position per distinct key."""
        wanted = {key: position for position, key in reversed(list(enumerate(keys))) if not self._has(key)}
        if wanted:
            self.read_files()
        return sorted(position for key, position in wanted.items() if not self._has(key))

    def add(self, keys: list[bytes], features: Tensor) -> None:
        """Append `(n, width)` features under n new keys."""
        records = np.empty(len(keys), self._record)
        records["key"] = [np.void(key) for key in keys]
        records["feature"] = features.detach().to("cpu", self.dtype).numpy()
        first = self._own.tell() // self._record.itemsize
        if self._own.write(records.tobytes()) < records.nbytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._own.name)
        name = Path(self._own.name).name
        for row, record in enumerate(records, first):
            self._insert(record["key"].tobytes(), record["feature"], name, row)

    def take(self, keys: list[bytes]) -> Tensor:
        """Return the features `(n, width)` of stored keys."""
        return torch.from_numpy(np.stack([self._feature(key) for key in keys]))

    def _has(self, key: bytes) -> bool:
        return key in self._memory or key in self._places

    def _insert(self, key: bytes, feature: np.ndarray, name: str, row: int) -> None:
        if self._has(key):
            return  # another process stored the same example; keep the first record
        if len(self._memory) < self._max_in_memory:
            self._memory[key] = np.array(feature)
        else:
            self._places[key] = (name, row)

    def _feature(self, key: bytes) -> np.ndarray:
        if key in self._memory:
            return self._memory[key]
        name, row = self._places[key]
        rows = self._maps.get(name, ())
        return (rows if row < len(rows) else self._map(name))[row]["feature"]

    def _map(self, name: str) -> np.ndarray:
        path = self.directory / name
        whole = path.stat().st_size // self._record.itemsize
        self._maps[name] = np.memmap(path, self._record, mode="r", shape=(whole,))
        return self._maps[name]
