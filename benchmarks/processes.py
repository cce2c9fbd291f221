"""What every benchmark shares: a fresh process for each measurement, the memory it took, a row kept of it."""

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from balora.report.page import versions


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run the script, return the JSON object on its last line. Its warnings are not shown, its errors are."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def in_turn(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Every name once a round, a different one first each time, so that none is always warmed up by the same."""
    names = list(names)
    for number in range(rounds):
        first = number % len(names)
        yield from names[first:] + names[:first]


def write_rows(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """Append a line of JSON for each row, with the versions and the machine that gave it; nothing without a path."""
    if path is None:
        return
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        for row in rows:
            file.write(json.dumps({**row, "device": device, "cores": os.cpu_count(), **versions()}) + "\n")


def resident_mb() -> float:
    """The most megabytes that this process has held, libraries and weights included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
