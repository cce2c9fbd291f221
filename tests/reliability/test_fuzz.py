"""Coverage-guided bad inputs through the readers of rows and recipes: no other error, no hang, no file changed."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import right_rows
from bad_inputs import INPUTS
from fuzz_targets import TARGETS, seeds, target

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: it has wheels for Linux alone"
)

#: A reader that does not expect a missing or renamed column.
FORGETFUL = """
import sys
from pathlib import Path
import fuzz_readers
from balora.data import load_table
from right_rows import READERS

READERS["times"] = (*READERS["times"][:2], lambda path: load_table(path)[0]["prompt"])
fuzz_readers.main("times", Path(sys.argv[1]), *sys.argv[2:])
"""


def fuzzed(program: list[str], folder: Path, *further: str) -> subprocess.CompletedProcess:
    """Run the fuzzer on a folder with a fixed seed."""
    paths = os.pathsep.join(str(path) for path in (SOURCE, HERE.parent, HERE))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"}
    command = [sys.executable, *program, str(folder), *further, "-seed=1"]
    # Before pytest's own limit, which would leave the process behind.
    return subprocess.run(command, capture_output=True, env=environment, timeout=800)


@needs_atheris
@pytest.mark.reliability
@pytest.mark.parametrize("name", TARGETS)
def test_every_fuzzed_input_is_read_or_refused(name, tmp_path):
    # libFuzzer counts an empty input and the seeds too, which it has not made.
    runs = INPUTS + len(seeds(name)) + 1
    run = fuzzed([str(HERE / "fuzz_readers.py"), name], tmp_path / "fuzz", f"-runs={runs}")
    said = run.stderr.decode(errors="replace")
    assert run.returncode == 0, said[-5000:]
    done = re.search(r"^Done (\d+) runs in (\d+) second", said, re.MULTILINE)
    assert int(done[1]) >= runs
    covered = [int(count) for count in re.findall(r"\bcov: (\d+)", said)]
    # Were the readers not instrumented, or every input refused at once, nothing would be found.
    assert covered[-1] > covered[0]
    print(f"{name}: {done[1]} inputs in {done[2]} s, {covered[0]} edges reached by the seeds, {covered[-1]} in all")


@needs_atheris
@pytest.mark.reliability
def test_the_fuzzer_finds_a_reader_s_missing_case(tmp_path):
    run = fuzzed(["-c", FORGETFUL], tmp_path / "fuzz", f"-runs={INPUTS}")
    said = run.stderr.decode(errors="replace") + run.stdout.decode(errors="replace")
    assert run.returncode != 0
    assert "KeyError" in said
    (crash,) = (tmp_path / "fuzz").glob("crash-*")
    assert crash.read_bytes() not in seeds("times")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_valid_inputs_and_refuses_invalid_ones(name, tmp_path):
    take = target(name, tmp_path)
    assert take(seeds(name)[0]) is None
    assert str(tmp_path) in take(seeds(name)[0] + b"}")
    assert take(b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", right_rows.READERS)
def test_the_valid_inputs_cover_all_rows_and_file_formats(name, tmp_path):
    kinds, suffixes, _ = right_rows.READERS[name]
    take = target(name, tmp_path)
    read = {place for place, seed in enumerate(seeds(name)) if take(seed) is None}
    assert {place % len(kinds) for place in read} == set(range(len(kinds)))
    forms = {suffixes[place // len(kinds)] for place in read}
    assert forms == set(suffixes) - ({".json"} if name == "streamed" else set())  # a document is read whole


@pytest.mark.parametrize(
    ("wrong", "raised"),
    [
        (lambda path: {}["a"], KeyError),
        (lambda path: int("a"), ValueError),  # of which our errors are a kind
        (lambda path: Path(path).unlink(), AssertionError),
        (lambda path: Path(path).write_text(""), AssertionError),
        (lambda path: Path(path).with_name("b").touch(), AssertionError),
    ],
    ids=["forgets a case", "explains nothing", "deletes", "overwrites", "leaves something"],
)
def test_a_target_raises_a_reader_s_unexpected_errors(wrong, raised, tmp_path, monkeypatch):
    monkeypatch.setitem(right_rows.READERS, "times", ([right_rows.PAIRS], (".jsonl",), wrong))
    with pytest.raises(raised):
        target("times", tmp_path)(seeds("times")[0])
