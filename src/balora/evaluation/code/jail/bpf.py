"""From the refused system calls to a seccomp filter in BPF, the kernel's own small machine language."""

import os
import struct

from .calls import MACHINES, NEWEST, NUMBERS, Rule

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NO_SUCH_CALL = 38


def instructions(rules: list[Rule]) -> bytes:
    """The filter for this machine: calls that a rule refuses fail, those newer than the table do not exist.

    A call made by another machine's convention (32-bit code on a 64-bit kernel) ends the process.

    Raises:
        OSError: On a machine whose calls are not in the table.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"system calls are known for {' and '.join(MACHINES)}, not for {machine}")
    convention, column = MACHINES[machine]
    # Offsets in `struct seccomp_data`: the call's number at 0, the convention at 4, argument i's low half at 16 + 8 i.
    number = _step(_LOAD, 0)
    program = [_step(_LOAD, 4), _step(_EQUAL, convention, 1, 0), _step(_RETURN, _KILL_PROCESS), number]
    program += [_step(_AT_LEAST, NEWEST + 1, 0, 1), _step(_RETURN, _ERRNO | _NO_SUCH_CALL)]
    for rule in rules:
        known = NUMBERS[rule.call][column]
        refuse = _step(_RETURN, _ERRNO | rule.error)
        if known is None:
            continue
        if rule.argument is None:
            program += [_step(_EQUAL, known, 0, 1), refuse]
            continue
        program += [
            _step(_EQUAL, known, 0, 5),
            _step(_LOAD, 16 + 8 * rule.argument),
            _step(_AND, rule.mask),
            _step(_EQUAL, rule.value, *((0, 1) if rule.refuse_equal else (1, 0))),
            refuse,
            number,
        ]
    return b"".join([*program, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
