"""Hostile programs, each bounded by itself: they fail alone, and the world is as it was."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from balora.errors import BALoraError
from balora.evaluation.code import isolation, run_program, sandbox

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")

FULL, SECCOMP_ALONE = ("namespaces", "landlock"), ()
#: Run each attempt; what is not refused is printed.
ATTEMPTS = """
def attempt(call, *arguments):
    try:
        result = call(*arguments)
    except (OSError, ValueError):
        return
    print("NOT REFUSED:", call, arguments, result)
"""


@pytest.fixture(params=[FULL, ("landlock",), ("namespaces",), SECCOMP_ALONE], ids=lambda layers: "+".join(layers))
def layers(request, monkeypatch):
    monkeypatch.setattr(sandbox, "LAYERS", request.param)
    return request.param


@pytest.fixture
def full():
    if not any("folder of its own" in line for line in isolation()):
        pytest.skip("this machine has no Landlock or no namespaces for its user")


def run(source: str, timeout_s: float = 5.0, memory_mb: int = 128) -> sandbox.Outcome:
    return run_program(source, timeout_s=timeout_s, memory_mb=memory_mb, confirm_run_unsafe_code=True)


def test_a_program_is_run_only_on_request():
    with pytest.raises(BALoraError, match="confirm_run_unsafe_code=True"):
        run_program("", timeout_s=1, memory_mb=64)


def test_a_program_that_ends_has_finished(layers):
    outcome = run("import math\nprint('π', math.comb(5, 2))\nimport sys; print('e', file=sys.stderr)")
    assert outcome.finished
    assert sorted(outcome.output.split()) == ["10", "e", "π"]
    assert 0 < outcome.seconds < 5


def test_a_program_is_a_module_in_an_empty_environment(layers, monkeypatch):
    monkeypatch.setenv("BALORA_SECRET", "in the environment")
    outcome = run(
        "import os, sys\n"
        "assert __name__ == 'program' and not os.environ and os.listdir() == [] and sys.stdin.read() == ''\n"
        "assert sys.argv == ['program.py'] and 'balora' not in sys.modules and 'torch' not in sys.modules\n"
        "assert not any('site-packages' in path for path in sys.path)\n"
        "try: assert b'BALORA_SECRET' not in open('/proc/self/environ', 'rb').read()\n"
        "except PermissionError: pass\n"
    )
    assert outcome.finished, outcome.output


@pytest.mark.parametrize(
    "source",
    [
        "raise SystemExit(0)",
        "import os; os._exit(0)",
        "import sys; sys.exit()",
        "raise KeyboardInterrupt",
        "1 / 0",
        "def f(:",
        "\0",
        "import ctypes; ctypes.string_at(0)",
        "def f(): return f()\nf()",
        "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
        "import sys\nsys.stderr = sys.stdout = sys.excepthook = None\n1 / 0",
        "import os\nfor i in range(3, 64):\n try: os.write(i, b'0' * 32)\n except OSError: pass\nos._exit(0)",
        "import os\nos.closerange(0, 64)\n1 / 0",
    ],
)
def test_a_program_that_ends_early_has_not_finished(source):
    outcome = run(source, memory_mb=200)
    assert outcome.ending == "exited"


def test_a_traceback_shows_the_program_s_line():
    assert "    assert 1 + 1 == 3\n" in run("def f():\n    assert 1 + 1 == 3\nf()").output


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(5)",
        "import signal, time\nfor n in set(signal.Signals) - {9, 19}: signal.signal(n, signal.SIG_IGN)\ntime.sleep(5)",
        "import os, time\nos.closerange(0, 64)\ntime.sleep(5)",
        "import os, time\nos.setsid() if os.getsid(0) != os.getpid() else None\ntime.sleep(5)",
    ],
)
def test_time_is_bounded(source):
    outcome = run(source, timeout_s=0.8)
    assert outcome.ending == "timeout"
    assert outcome.seconds < 3


def test_a_thread_left_behind_does_not_hold_a_finished_program():
    outcome = run("import threading, time\nthreading.Thread(target=time.sleep, args=(5,)).start()")
    assert outcome.finished
    assert outcome.seconds < 3


def test_memory_is_bounded(layers):
    assert "MemoryError" in run("x = bytearray(150 << 20)").output
    assert run("import mmap; x = mmap.mmap(-1, 150 << 20)", memory_mb=256).finished
    outcome = run(
        ATTEMPTS + "import mmap, os, ctypes\n"
        "attempt(mmap.mmap, -1, 150 << 20)\n"
        "attempt(os.memfd_create, 'x')\n"
        "libc = ctypes.CDLL(None)\n"
        "assert libc.shmget(0, 1 << 20, 0o1600) == -1"
    )
    assert outcome.finished, outcome.output
    assert "NOT REFUSED" not in outcome.output, outcome.output


def test_output_is_bounded():
    outcome = run("while True: print('x' * 100_000)")
    assert outcome.ending == "output"
    assert sandbox.OUTPUT_BYTES < len(outcome.output) <= sandbox.OUTPUT_BYTES + (1 << 16)


def test_there_is_one_process(layers):
    """Every way to a second one; a child would end at once."""
    outcome = run(
        ATTEMPTS + "import ctypes, multiprocessing, os, platform, pty, subprocess\n"
        "def fork(how):\n"
        "    pid = how()\n"
        "    if pid == 0: os._exit(0)\n"
        "    return pid\n"
        "for _ in range(5): attempt(fork, os.fork)\n"
        "attempt(fork, lambda: pty.fork()[0])\n"
        "attempt(os.posix_spawn, '/bin/true', ['true'], {})\n"
        "attempt(os.execv, '/bin/true', ['true'])\n"
        "attempt(subprocess.run, ['/bin/true'])\n"
        "attempt(lambda: multiprocessing.get_context('fork').Process(target=print).start())\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert fork(libc.fork) == -1\n"
        "clone = {'x86_64': 56, 'aarch64': 220}[platform.machine()]\n"
        "assert fork(lambda: libc.syscall(clone, 17, 0, 0, 0, 0)) == -1\n"
        "assert libc.syscall(435, ctypes.create_string_buffer(88), 88) == -1 and ctypes.get_errno() == 38\n"
        "assert libc.unshare(0x10000000) == -1 and ctypes.get_errno() == 1\n"
        "assert libc.syscall(451, 0, 0, 0) == -1 and ctypes.get_errno() == 38\n"
        "import threading\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
    )
    assert outcome.finished, outcome.output
    assert outcome.output.split() == ["thread"], outcome.output


def test_other_processes_are_out_of_reach(layers):
    victim = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(20)"])
    try:
        nice = os.getpriority(os.PRIO_PROCESS, victim.pid)
        outcome = run(
            ATTEMPTS + f"import ctypes, fcntl, os, resource, signal, struct\nvictim = {victim.pid}\n"
            "attempt(os.kill, victim, signal.SIGKILL)\n"
            "attempt(os.kill, os.getppid(), 0)\n"
            "attempt(os.pidfd_open, victim)\n"
            "attempt(os.setpriority, os.PRIO_PROCESS, victim, 19)\n"
            "attempt(os.sched_setaffinity, victim, {0})\n"
            "attempt(resource.prlimit, victim, resource.RLIMIT_CPU, (0, 0))\n"
            "attempt(open, f'/proc/{victim}/mem', 'r+b')\n"
            "reader, writer = os.pipe()\n"
            "attempt(fcntl.fcntl, reader, fcntl.F_SETOWN, victim)\n"
            "libc = ctypes.CDLL(None)\n"
            "assert libc.ptrace(16, victim, 0, 0) == -1\n"
            "capabilities = ctypes.create_string_buffer(24)\n"
            "assert libc.capget(struct.pack('=Ii', 0x20080522, 0), capabilities) == 0\n"
            "assert capabilities.raw == bytes(24)\n"
            "assert resource.getrlimit(resource.RLIMIT_CPU)[1] == 5\n"
            "attempt(resource.setrlimit, resource.RLIMIT_CPU, (500, 500))\n"
            "attempt(resource.setrlimit, resource.RLIMIT_AS, (-1, -1))\n"
        )
        assert outcome.finished, outcome.output
        assert not outcome.output, outcome.output
        assert victim.poll() is None
        assert os.getpriority(os.PRIO_PROCESS, victim.pid) == nice
    finally:
        victim.kill()
        victim.wait()


def test_no_socket_is_opened(layers):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        outcome = run(
            ATTEMPTS + f"import socket\nattempt(socket.create_connection, {server.getsockname()})\n"
            "attempt(socket.socket, socket.AF_UNIX)\n"
            "attempt(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)\n"
            "attempt(socket.socketpair)\n"
        )
        with pytest.raises(TimeoutError):
            server.accept()
    assert outcome.finished, outcome.output
    assert not outcome.output, outcome.output


def test_files_elsewhere_stay_as_they_are(layers, tmp_path):
    (tmp_path / "kept").write_text("kept")
    tmp_path.chmod(0o777)
    (tmp_path / "kept").chmod(0o666)
    (tmp_path / "folder").mkdir()
    before = {path: (path.stat(), path.is_dir() or path.read_text()) for path in [tmp_path, *tmp_path.iterdir()]}
    outcome = run(
        ATTEMPTS + f"import os, shutil\nhere = {str(tmp_path)!r}\nkept = here + '/kept'\n"
        "for mode in ('w', 'a', 'r+', 'x'): attempt(open, kept if mode != 'x' else here + '/new', mode)\n"
        "attempt(os.open, kept, os.O_RDONLY | os.O_TRUNC)\n"
        "attempt(os.open, here, os.O_TMPFILE | os.O_RDWR)\n"
        "attempt(os.truncate, kept, 0)\n"
        "attempt(os.unlink, kept)\n"
        "attempt(os.rename, kept, here + '/moved')\n"
        "attempt(os.rename, kept, 'moved')\n"
        "attempt(os.link, kept, here + '/linked')\n"
        "attempt(os.symlink, kept, here + '/linked')\n"
        "attempt(os.mkdir, here + '/made')\n"
        "attempt(os.mkfifo, here + '/made')\n"
        "attempt(os.rmdir, here + '/folder')\n"
        "attempt(shutil.rmtree, here)\n"
        "attempt(os.chmod, kept, 0)\n"
        "attempt(os.chmod, here, 0)\n"
        "attempt(os.chown, kept, 1, 1)\n"
        "attempt(os.utime, kept, (0, 0))\n"
        "attempt(os.setxattr, kept, 'user.x', b'x')\n"
        "attempt(os.open, '/dev/kmsg', os.O_WRONLY)\n"
        "attempt(open, '/proc/self/oom_score_adj', 'w')\n"
    )
    assert outcome.finished, outcome.output
    assert not outcome.output, outcome.output
    after = {path: (path.stat(), path.is_dir() or path.read_text()) for path in [tmp_path, *tmp_path.iterdir()]}
    # Reading them above moves the time of access.
    assert {path: (stat[:7], stat[8:], text) for path, (stat, text) in before.items()} == {
        path: (stat[:7], stat[8:], text) for path, (stat, text) in after.items()
    }


def test_readable_files_match_isolation(layers, tmp_path):
    (tmp_path / "secret").write_text("secret of the user")
    outcome = run(f"print(open({str(tmp_path / 'secret')!r}).read())\nimport os; print(os.listdir('/'))")
    limited = any("reads no file" in line for line in outcome.isolation)
    assert outcome.finished is not limited
    assert ("secret of the user" in outcome.output) is not limited
    assert limited <= ("landlock" in layers)


def test_its_own_folder_is_bounded_and_gone_afterwards(full, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    outcome = run(
        "import errno, os, tempfile\n"
        "os.mkdir('a'); os.rename('a', 'b'); tempfile.TemporaryFile().close()\n"
        "try:\n"
        "    for i in range(20): open(f'{i}', 'wb').write(bytes(2 << 20))\n"
        "except OSError as error:\n"
        "    assert error.errno == errno.ENOSPC and i == 8, (error, i)\n"
        "else: raise AssertionError('40 MiB')\n"
        "print(os.getcwd())\n"
    )
    assert outcome.finished, outcome.output
    assert Path(outcome.output.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    assert "File too large" in run("open('x', 'wb').write(bytes(17 << 20))").output


def test_a_program_dies_with_whoever_started_it(layers, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    judge = os.fork()
    if judge == 0:
        try:
            run("import ctypes, time\nctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\ntime.sleep(5)")
        finally:
            os._exit(0)
    children = Path(f"/proc/{judge}/task/{judge}/children")
    for _ in range(200):
        if (program := children.read_text().split()) and b"jail" in Path(f"/proc/{program[0]}/cmdline").read_bytes():
            break
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(judge, signal.SIGKILL)
    os.waitpid(judge, 0)
    for _ in range(200):
        if not (stat := Path(f"/proc/{program[0]}/stat")).exists() or " Z " in stat.read_text():
            return
        time.sleep(0.01)
    os.kill(int(program[0]), signal.SIGKILL)
    pytest.fail("the program outlived its judge")


def test_other_systems_raise(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(BALoraError, match="on Linux only"):
        run("")


def test_a_machine_that_cannot_confine_raises(monkeypatch):
    monkeypatch.setattr(sandbox, "_JAIL", "/nonexistent/jail.py")
    with pytest.raises(BALoraError, match=r"no program can be run here.*nonexistent"):
        run("")
