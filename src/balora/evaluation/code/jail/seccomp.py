"""The refused system calls, and the seccomp filter that refuses them, in BPF.

All other calls are allowed, since a list of the calls that Python needs would differ between C libraries. Calls newer
than this table are refused too, so no unknown call is allowed.
"""

import os
import struct

#: Machine to seccomp's constant for its calling convention (`AUDIT_ARCH_…`) and its column in `NUMBERS`.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
#: Highest call number of this table: Linux 5.17.
NEWEST = 450

EPERM, ENOTTY, EROFS, ENOSYS = 1, 25, 30, 38


class Rule:
    """A system call to refuse, always or depending on an argument.

    Attributes:
        call: Name in `NUMBERS`.
        error: `errno` of the refusal.
        argument: Index of the argument that decides; `None`: always refuse.
        mask: Bits of the argument to compare.
        value: Value to compare them with.
        refuse_equal: Refuse if the bits are equal (True) or if they differ (False).
    """

    def __init__(
        self,
        call: str,
        error: int = EPERM,
        argument: int | None = None,
        mask: int = 0xFFFFFFFF,
        value: int = 0,
        refuse_equal: bool = True,
    ) -> None:
        self.call, self.error, self.argument = call, error, argument
        self.mask, self.value, self.refuse_equal = mask, value, refuse_equal


# fmt: off
#: Numbers on x86_64 and aarch64, `None` if the call does not exist there; names as in the kernel.
PROCESS_NUMBERS: dict[str, tuple[int, int | None]] = {
    # processes and namespaces
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "execve": (59, 221),
    "execveat": (322, 281), "unshare": (272, 97), "setns": (308, 268),
    # other processes
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "perf_event_open": (298, 241), "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239), "prctl": (157, 167),
    "fcntl": (72, 25), "ioctl": (16, 29),
    # the network, and io_uring, which makes calls that no filter sees
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # shared or persistent objects, and memory that the limit does not count
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "userfaultfd": (323, 282), "sync": (162, 81), "syncfs": (306, 267),
    # owners, modes, times and attributes of files, which Landlock does not restrict
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}
#: Likewise for calls that can create, change or remove files.
FILE_NUMBERS: dict[str, tuple[int, int | None]] = {
    "open": (2, None), "openat": (257, 56), "openat2": (437, 437), "creat": (85, None), "truncate": (76, 45),
    "mknod": (133, None), "mknodat": (259, 33), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
}
# fmt: on
NUMBERS = {**PROCESS_NUMBERS, **FILE_NUMBERS}

_CLONE_THREAD = 0x10000
_PR_SET_PDEATHSIG = 1
_F_SETOWN, _F_SETOWN_EX, _F_SETLEASE = 8, 15, 1024

#: Calls that are refused depending on an argument, or with an error that the C library can handle.
_SPECIAL = [
    Rule("clone", argument=0, mask=_CLONE_THREAD, value=0),  # threads are allowed
    Rule("clone3", error=ENOSYS),  # no filter can read its flags in memory; the C library falls back to clone
    Rule("prlimit64", argument=0, value=0, refuse_equal=False),  # the own limits are allowed, and never go up
    Rule("prctl", argument=0, value=_PR_SET_PDEATHSIG),
    # Signals to arbitrary processes, and leases, which block other processes.
    *[Rule("fcntl", argument=1, value=command) for command in (_F_SETOWN, _F_SETOWN_EX, _F_SETLEASE)],
    Rule("ioctl", error=ENOTTY),
]
_OPEN_TO_WRITE = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_WRITING = [
    Rule("open", error=EROFS, argument=1, mask=_OPEN_TO_WRITE, value=0, refuse_equal=False),
    Rule("openat", error=EROFS, argument=2, mask=_OPEN_TO_WRITE, value=0, refuse_equal=False),
    Rule("openat2", error=ENOSYS),
]


def _complete(special: list[Rule], names: dict[str, tuple[int, int | None]]) -> list[Rule]:
    return special + [Rule(name) for name in names if name not in {rule.call for rule in special}]


#: A single process without network and without persistent effects.
ALONE = _complete(_SPECIAL, PROCESS_NUMBERS)
#: No file is created, changed or removed.
READ_ONLY = _complete(_WRITING, FILE_NUMBERS)


_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_NO_SUCH_CALL = 38


def instructions(rules: list[Rule]) -> bytes:
    """Return the BPF filter for this machine; calls newer than the table fail as unknown calls.

    A call with another machine's convention (32-bit code on a 64-bit kernel) ends the process.

    Raises:
        OSError: If the machine's calls are not in the table.
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
