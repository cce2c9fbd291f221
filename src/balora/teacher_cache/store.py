"""`FeatureStore`: features by key, in memory up to a limit, and all that must survive the process in files.

Each process appends records to its own file: a header with key, shape and dtype, then the numbers. It reads the files
of all processes, or only its own. A partial record that a killed process left is truncated when its file is opened
again.
"""

import errno
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KEY_BYTES = 16
SUFFIX = ".records"
HEADER = np.dtype([("key", f"V{KEY_BYTES}"), ("rows", "<u4"), ("width", "<u4"), ("dtype", "<u4")])
#: Dtypes of features, by the number in the header.
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class FeatureStore:
    """Features `(n, width)` by key; their shapes and dtypes may differ.

    Args:
        directory: Folder of the files, created if absent; `None` for a temporary one with only those features that
            are beyond the memory limit.
        memory_mb: Memory limit in MB (2²⁰ bytes) for features; the rest is read from memory-mapped files.
        writer: Name of this process's file.
        shared: Whether to read the files of other processes too.

    Attributes:
        memory_bytes: Bytes of the features in memory.
    """

    def __init__(self, directory: Path | None, *, memory_mb: float, writer: str = "0", shared: bool = True) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="balora-") if directory is None else None
        self.directory = Path(self._temporary.name) if directory is None else directory
        self.directory.mkdir(parents=True, exist_ok=True)
        self.memory_bytes = 0
        self._most_bytes = memory_mb * 2**20
        self._memory: dict[bytes, Tensor] = {}
        self._places: dict[bytes, tuple[str, int]] = {}  # file and offset of features that are not in memory
        self._maps: dict[str, np.ndarray] = {}
        self._indexed: dict[str, int] = {}  # bytes of each file that are whole records and known
        self._pattern = f"*{SUFFIX}" if shared else f"{writer}{SUFFIX}"
        own = self.directory / f"{writer}{SUFFIX}"
        self.read_files()
        if own.exists():
            os.truncate(own, self._indexed[own.name])
        self._own = open(own, "ab", buffering=0)  # noqa: SIM115 - stays open for the store's lifetime

    def __len__(self) -> int:
        return len(self._memory) + len(self._places)

    def read_files(self) -> None:
        """Index the whole records that were written since the last call."""
        for path in sorted(self.directory.glob(self._pattern)):
            start, size = self._indexed.setdefault(path.name, 0), path.stat().st_size
            while start + HEADER.itemsize <= size:
                header = self._bytes(path.name, start, HEADER.itemsize).view(HEADER)[0]
                stop = start + HEADER.itemsize + _feature_bytes(header)
                if stop > size:
                    break
                self._insert(header["key"].tobytes(), None, path.name, start)
                self._indexed[path.name] = start = stop

    def missing(self, keys: list[bytes]) -> list[int]:
        """Return the positions of keys without a feature, one position per distinct key."""
        wanted = {key: position for position, key in reversed(list(enumerate(keys))) if not self._has(key)}
        if wanted:
            self.read_files()
        return sorted(position for key, position in wanted.items() if not self._has(key))

    def add(self, keys: list[bytes], features: Iterable[Tensor]) -> None:
        """Add a feature `(n, width)` for each of the new keys."""
        name = Path(self._own.name).name
        for key, feature in zip(keys, features, strict=True):
            feature = feature.detach().to("cpu", copy=True).contiguous()
            if self._temporary is not None and self._has_room(feature):
                self._insert(key, feature, name, 0)
                continue
            header = np.array([(np.void(key), *feature.shape, DTYPES.index(feature.dtype))], HEADER)
            record = header.tobytes() + feature.view(torch.uint8).numpy().tobytes()
            if self._own.write(record) < len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._own.name)
            start = self._indexed.get(name, 0)
            self._insert(key, feature, name, start)
            self._indexed[name] = start + len(record)

    def take(self, keys: list[bytes]) -> list[Tensor]:
        """Return the features of stored keys; they must not be changed."""
        return [self._memory[key] if key in self._memory else self._read(*self._places[key]) for key in keys]

    def _has(self, key: bytes) -> bool:
        return key in self._memory or key in self._places

    def _has_room(self, feature: Tensor) -> bool:
        return self.memory_bytes + feature.nbytes <= self._most_bytes

    def _insert(self, key: bytes, feature: Tensor | None, name: str, start: int) -> None:
        """Index a record; its feature is read from the file where it is not given."""
        if self._has(key):
            return  # another process stored the same example; keep the first record
        if feature is None:
            feature = self._read(name, start)
        if self._has_room(feature):
            self._memory[key] = feature
            self.memory_bytes += feature.nbytes
        else:
            self._places[key] = (name, start)

    def _read(self, name: str, start: int) -> Tensor:
        header = self._bytes(name, start, HEADER.itemsize).view(HEADER)[0]
        found = self._bytes(name, start + HEADER.itemsize, _feature_bytes(header))
        return torch.from_numpy(found).view(DTYPES[header["dtype"]]).view(int(header["rows"]), int(header["width"]))

    def _bytes(self, name: str, start: int, count: int) -> np.ndarray:
        """Return a copy of a file's bytes."""
        if start + count > len(self._maps.get(name, ())):
            self._maps[name] = np.memmap(self.directory / name, np.uint8, mode="r")
        return np.array(self._maps[name][start : start + count])


def _feature_bytes(header: np.void) -> int:
    return int(header["rows"]) * int(header["width"]) * DTYPES[header["dtype"]].itemsize
