"""The system calls that a program to be judged is refused.

Everything else is allowed: a list of what Python may need would differ between C libraries. So that no call is allowed
unseen, the filter knows of no call newer than this table.
"""

import os

#: By machine: what seccomp calls its convention (`AUDIT_ARCH_…`), and its column in `NUMBERS`.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
#: Highest number considered: Linux 5.17.
NEWEST = 450

EPERM, ENOTTY, EROFS, ENOSYS = 1, 25, 30, 38


class Rule:
    """A call that is refused, always or by an argument.

    Attributes:
        call: Name in `NUMBERS`.
        error: `errno` that it fails with.
        argument: Index of the argument that decides; `None` refuses every such call.
        mask: Bits of the argument that are looked at.
        value: What they are compared with.
        refuse_equal: Whether equal bits are refused, or all others.
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
#: Numbers on x86_64 and aarch64, `None` where there is no such call; names as in the kernel.
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
    # the network, and what does calls' work unseen
    "socket": (41, 198), "socketpair": (53, 199), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # what is shared, outlives the process, or is memory that its limit does not count
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193),
    "semtimedop": (220, 192), "semctl": (66, 191), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "msgctl": (71, 187), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "userfaultfd": (323, 282), "sync": (162, 81), "syncfs": (306, 267),
    # owners, modes, times and attributes of files, which Landlock leaves open
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}
#: The same of calls that make, change or remove files, or may.
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

#: Rules for calls that are refused by an argument, or with an error that the C library knows how to go on from.
_SPECIAL = [
    Rule("clone", argument=0, mask=_CLONE_THREAD, value=0),  # threads are fine
    Rule("clone3", error=ENOSYS),  # its flags lie in memory, where a filter cannot look; the C library turns to clone
    Rule("prlimit64", argument=0, value=0, refuse_equal=False),  # its own limits are fine, and never go up
    Rule("prctl", argument=0, value=_PR_SET_PDEATHSIG),
    # A signal of one's choice for whom one chooses, and leases, which make others wait.
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


#: One process without others, without a network, without traces.
ALONE = _complete(_SPECIAL, PROCESS_NUMBERS)
#: No file made, changed or removed.
READ_ONLY = _complete(_WRITING, FILE_NUMBERS)
