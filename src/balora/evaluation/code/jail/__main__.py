"""Give up rights, run the program from standard input, and report whether it reached its end.

    python -S -s jail/__main__.py REPORT_FD MEMORY_MB CPU_SECONDS LAYERS

The first line of standard input is the token, the rest is the program. REPORT_FD gets one line per guarantee and an
empty line before the program starts, and the token after its last line. Imports are few, since every program waits for
them.
"""

import os
import resource
import sys

sys.path[0] = os.path.dirname(sys.path[0])
from jail import kernel, seccomp  # noqa: E402

del sys.path[0]

NAME = "program.py"
MIB = 1 << 20
SCRATCH_MB, SCRATCH_FILES, OPEN_FILES = 16, 256, 64
#: Folders of the system libraries that the standard library links to, and the time zones.
LIBRARIES = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/etc/ld.so.cache"]
ZONES = ["/usr/share/zoneinfo", "/etc/localtime"]


def main() -> None:
    """Run the program from standard input, confined as the arguments say."""
    report, memory_mb, cpu_seconds = map(int, sys.argv[1:4])
    token, _, source = sys.stdin.buffer.read().partition(b"\n")
    guarantees = lock_down(memory_mb, cpu_seconds, layers=sys.argv[4].split(","))
    # Local names, which the program cannot replace.
    write, leave, flush = os.write, os._exit, sys.stdout.flush
    write(report, "\n".join([*guarantees, "\n"]).encode())
    status = 1
    try:
        run(source.decode())
        write(report, token)
        status = 0
    except BaseException:
        print_traceback(source.decode())
    finally:
        # Not a normal exit, which would wait for the program's threads and run its exit handlers.
        try:
            flush()
        finally:
            leave(status)


def run(source: str) -> None:
    """Run the program as a module, not as `__main__`, so that its script part does not run."""
    module = type(sys)("program")
    sys.modules["program"] = module
    sys.argv = [NAME]
    exec(compile(source, NAME, "exec"), module.__dict__)


def print_traceback(source: str) -> None:
    """Print the traceback from the program's frame on, with its source lines, which are in no file."""
    import linecache
    import traceback

    linecache.cache[NAME] = (len(source), None, source.splitlines(keepends=True), NAME)
    kind, error, trace = sys.exc_info()
    traceback.print_exception(kind, error, trace.tb_next.tb_next)


def lock_down(memory_mb: int, cpu_seconds: int, layers: list[str]) -> list[str]:
    """Give up every right that a program of functions and asserts does without, and say which.

    Args:
        memory_mb: Address space.
        cpu_seconds: Of all threads together.
        layers: Which of `namespaces` and `landlock` to try; the rest is required.

    Raises:
        OSError: Without seccomp.
    """
    os.environ.clear()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    held = [f"{memory_mb} MiB of memory, {cpu_seconds} s of CPU time, {OPEN_FILES} open files (rlimits)"]
    rules = list(seccomp.ALONE)

    scratch = False
    if "namespaces" in layers:
        try:
            kernel.own_namespaces()
            held.append("no network interface (network namespace)")
            kernel.mount_memory(os.getcwd(), size=SCRATCH_MB * MIB, files=SCRATCH_FILES)
            scratch = True
        except OSError:
            pass
    kernel.drop_capabilities()
    kernel.die_with_parent()  # now: a change of user namespace would undo it
    landlock = False
    if "landlock" in layers:
        here, prefixes = os.getcwd(), [sys.base_prefix, sys.base_exec_prefix, *sys.path]
        try:
            kernel.restrict_files([*prefixes, *LIBRARIES, *ZONES, here], [here] if scratch else [])
            landlock = True
            held.append("reads no file but the interpreter's and the system libraries' (Landlock)")
        except OSError:
            pass
    if scratch and landlock:
        held.append(f"writes no file but {SCRATCH_MB} MiB in a folder of its own (Landlock, mount namespace)")
    else:
        rules += seccomp.READ_ONLY
        held.append("writes no file (seccomp)")

    for limit, value in (
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, SCRATCH_MB * MIB),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_mb * MIB),
    ):
        ceiling = resource.getrlimit(limit)[1]
        bound = value if ceiling == resource.RLIM_INFINITY else min(value, ceiling)
        resource.setrlimit(limit, (bound, bound))
    kernel.restrict_calls(seccomp.instructions(rules))
    held.append("starts no process, runs no other file, reaches no other process (seccomp)")
    held.append("opens no socket (seccomp)")
    return held


main()
