"""Give up rights on Linux through `ctypes`: namespaces, capabilities, Landlock, seccomp.

Each function removes rights from the calling process permanently, and raises `OSError` if the kernel refuses.
"""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_CAPABILITY_VERSION_3 = 0x20080522

# Landlock's calls have the same numbers on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 2, 1 << 3
#: All rights of version 3 (Linux 6.2), the first that includes truncation.
_LANDLOCK_ALL = (1 << 15) - 1
#: Read and write files, list, make and remove files and folders, truncate, move between folders.
_LANDLOCK_USE = sum(1 << bit for bit in (1, 2, 3, 4, 5, 7, 8, 13, 14))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _prctl(option: int, *values: object) -> None:
    _checked(_libc.prctl(option, *values, *[ctypes.c_ulong(0)] * (4 - len(values))))


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(9))


def own_namespaces() -> None:
    """Enter new network, IPC and mount namespaces: no interface is up, and no mount is visible elsewhere.

    An unprivileged user gets them through a user namespace, if the distribution permits it.
    """
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    if _libc.unshare(flags) != 0:
        _checked(_libc.unshare(flags | _CLONE_NEWUSER))
        for file, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{file}", "w") as handle:
                handle.write(line)
    _checked(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))


def mount_memory(folder: str, size: int, files: int) -> None:
    """Mount a file system in memory on a folder, visible to this process only and deleted with it.

    Args:
        folder: The folder, which becomes the working directory.
        size: Maximum bytes.
        files: Maximum number of files and folders.
    """
    options = f"size={size},nr_inodes={files},mode=700".encode()
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _checked(_libc.mount(b"scratch", os.fsencode(folder), b"tmpfs", flags, options))
    os.chdir(folder)


def drop_capabilities() -> None:
    """Drop all capabilities, also as root, gain none by executing a file, and leave no core dump."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, bytes(24)))
    _prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    _prctl(_PR_SET_DUMPABLE)  # a core dump handler ignores RLIMIT_CORE


def restrict_files(readable: list[str], writable: list[str]) -> None:
    """Landlock: allow access to these files and folders only, and execution of none.

    Args:
        readable: Files and folders to read and list; missing ones are skipped.
        writable: Folders with full access.

    Raises:
        OSError: Without Landlock, or below its version 3 (Linux 6.2).
    """
    version = _checked(_libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), 1))
    if version < 3:
        raise OSError(f"Landlock's version {version} does not restrict truncation")
    handled = struct.pack("=Q", _LANDLOCK_ALL)
    ruleset = _checked(_libc.syscall(ctypes.c_long(_LANDLOCK_CREATE_RULESET), handled, ctypes.c_size_t(8), 0))
    read = _LANDLOCK_READ_FILE | _LANDLOCK_READ_DIR
    for path, rights in [(path, read) for path in readable] + [(path, _LANDLOCK_USE) for path in writable]:
        if os.path.exists(path):
            parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
            granted = rights if os.path.isdir(path) else rights & _LANDLOCK_READ_FILE
            rule = struct.pack("=Qi", granted, parent)
            _checked(_libc.syscall(ctypes.c_long(_LANDLOCK_ADD_RULE), ruleset, 1, rule, 0))
            os.close(parent)
    _checked(_libc.syscall(ctypes.c_long(_LANDLOCK_RESTRICT_SELF), ruleset, 0))
    os.close(ruleset)


def restrict_calls(instructions: bytes) -> None:
    """Seccomp: from now on the kernel checks every system call with a filter (`seccomp.instructions`)."""
    body = ctypes.create_string_buffer(instructions, len(instructions))
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(body))
    _prctl(_PR_SET_SECCOMP, ctypes.c_ulong(2), program)
