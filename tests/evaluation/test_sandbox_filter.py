"""The seccomp filter, for either machine: numbers against the kernel's headers, decisions against a naive reading."""

import itertools
import re
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.evaluation.code.jail import seccomp


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "x86_64-linux-gnu/asm/unistd_64.h"), (1, "asm-generic/unistd.h")],
    ids=["x86", "generic"],
)
def test_call_numbers_equal_the_kernel_s(column, header):
    path = Path("/usr/include") / header
    if not path.is_file():
        pytest.skip(f"{path} is absent: it comes with Linux's headers")
    text = path.read_text()
    known = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)}
    numbers = {name: pair[column] for name, pair in seccomp.NUMBERS.items()}
    assert {name: known.get(name) for name in numbers} == numbers


def naive_filter(program: bytes, number: int, convention: int, arguments: list[int]) -> int:
    """Evaluate a filter as the kernel does, instruction by instruction."""
    data = struct.pack("=iIQ6Q", number, convention, 0, *arguments)
    steps = list(struct.iter_unpack("=HBBI", program))
    at, accumulator = 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x54:
            accumulator &= value
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value}[code]
            at += if_true if holds else if_false


words = st.sampled_from([0, 1, 2, 8, 15, 17, 0x10000, 0o100, 0o1000, 1024]) | st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(["x86_64", "aarch64"]), st.booleans(), st.lists(words, min_size=6, max_size=6))
def test_the_filter_refuses_what_the_table_says_and_nothing_else(machine, read_only, arguments):
    rules = seccomp.ALONE + (seccomp.READ_ONLY if read_only else [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seccomp.os, "uname", lambda: SimpleNamespace(machine=machine))
        program = seccomp.instructions(rules)
    convention, column = seccomp.MACHINES[machine]
    names = {pair[column]: name for name, pair in seccomp.NUMBERS.items()}
    low = [argument % 2**32 for argument in arguments]
    by_argument = {
        "clone": not low[0] & 0x10000,
        "prlimit64": low[0] != 0,
        "prctl": low[0] == 1,
        "fcntl": low[1] in (8, 15, 1024),
        "open": bool(low[1] & 0o1103),
        "openat": bool(low[2] & 0o1103),
    }
    for number in itertools.chain(range(seccomp.NEWEST + 5), [0x40000000, 2**31 - 1]):
        verdict = naive_filter(program, number, convention, arguments)
        name = names.get(number)
        if number > seccomp.NEWEST:
            assert verdict == 0x50000 | 38
        elif name is None or (name in seccomp.FILE_NUMBERS and not read_only):
            assert verdict == 0x7FFF0000
        else:
            assert (verdict == 0x7FFF0000) is not by_argument.get(name, True), name
            assert verdict in {0x7FFF0000, *(0x50000 | error for error in (1, 25, 30, 38))}
    assert naive_filter(program, 0, 0x40000003, arguments) == 0x80000000
