"""The Triton kernel against the same rows in PyTorch, in the interpreter that Triton has for machines without a GPU.

Triton chooses between interpreter and compiler when it is imported, and other tests import it through their libraries.
So this file, run as a program, takes the rows of every case through the kernel; the tests compare what it saved.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from balora.fused.row_gradients import RowObjective, RowWeights, differentiate_rows

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")

ROWS = 3
#: So that each vocabulary takes several blocks, the last one in part.
BLOCKS = {101: 64, 1000: 512}
#: Of the largest value and the largest gradient.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


class Case(NamedTuple):
    temperature: float
    reverse: bool
    softcap: float | None
    taught: bool
    top_k: int
    columns: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return "-".join(str(part).removeprefix("torch.") for part in self)


SIZES = [(0, 101), (5, 101), (20, 1000)]
CASES = [
    Case(temperature, reverse, softcap, taught, *size, dtype)
    for settings in [
        product([1, 2, 3.5], [False, True], [None, 3.0], [True], SIZES, [torch.float32]),
        product([3.5], [False], [None, 3.0], [False], SIZES, [torch.float32]),
        product([1, 2, 3.5], [False, True], [None, 3.0], [True], [(20, 101)], [torch.bfloat16]),
        product([3.5], [False, True], [3.0], [True], [(20, 101)], [torch.float16, torch.float64]),
    ]
    for temperature, reverse, softcap, taught, size, dtype in settings
]


def rows_of(case: Case) -> tuple[Tensor, Tensor | None, RowWeights, RowObjective]:
    generator = torch.Generator().manual_seed(7)
    wide = torch.promote_types(case.dtype, torch.float32)
    logits = 3 * torch.randn(2, ROWS, case.columns, generator=generator).clamp(max=1.3)
    # Too far apart for a format to make them equal: which of two equals is among the top K is anyone's choice.
    columns = torch.rand(2, ROWS, case.columns, generator=generator).argsort()[..., :21]
    logits.scatter_(-1, columns, torch.linspace(4, 9, 21).expand(2, ROWS, -1))
    logits[:, 0] += 500  # more than exp can hold
    labels = torch.randint(case.columns, (ROWS,), generator=generator)
    labels[1::2] = -100
    share = torch.rand(3, ROWS, generator=generator).to(wide)
    share[0, labels == -100] = 0
    share[2, 0] = 0  # with 500 added they are equal after all
    student, teacher = logits.to(case.dtype)
    objective = RowObjective(case.temperature, case.reverse, case.top_k, case.softcap)
    return student, teacher if case.taught else None, RowWeights(labels, *share), objective


@pytest.fixture(scope="module")
def from_the_kernel(tmp_path_factory) -> dict[Case, tuple[Tensor, Tensor]]:
    from shared_folders import built_once  # here, since the script that this file is too has no tests/ on its path

    def interpret(folder: Path) -> None:
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        command = [sys.executable, __file__, folder / "results.pt"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    saved = built_once(tmp_path_factory, "triton", interpret) / "results.pt"
    return dict(zip(CASES, torch.load(saved), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_pytorch(case, from_the_kernel):
    logits, teacher_logits, weights, objective = rows_of(case)
    expected_values = differentiate_rows(logits, teacher_logits, weights, objective)
    values, gradient = from_the_kernel[case]
    assert values.dtype == expected_values.dtype
    assert gradient.dtype == case.dtype
    for actual, expected in [*zip(values, expected_values, strict=True), *zip(gradient, logits, strict=True)]:
        bound = TOLERANCE[case.dtype] * expected.abs().max().item()
        torch.testing.assert_close(actual, expected, rtol=0, atol=bound)


def save_every_case(path: str) -> None:
    from balora.fused import triton_row_gradients

    results = []
    for case in CASES:
        triton_row_gradients.BLOCK = BLOCKS[case.columns]
        logits, *rest = rows_of(case)
        results.append((triton_row_gradients.differentiate_rows_on_gpu(logits, *rest), logits))
    torch.save(results, path)


if __name__ == "__main__":
    save_every_case(sys.argv[1])
