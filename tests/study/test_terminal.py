"""What the terminal shows of errors: one line, an exit status, and where the whole traceback is."""

import io
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
from datasets import arrow_dataset
from rich.console import Console

from balora.cli import main
from balora.data import load_table
from balora.errors import BALoraError
from balora.study import pool as pool_module
from balora.study import terminal
from balora.study.pool import run_in_processes
from balora.utils import progress


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(terminal.TRACEBACK, raising=False)
    monkeypatch.setattr(progress, "_display", None)
    return tmp_path / "cache"


def fail() -> None:
    raise KeyError("first line\nsecond line\x1b[31m")


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_a_log(cache, capsys):
    assert terminal.report_errors(fail) == 1
    error = capsys.readouterr().err
    [line] = error.splitlines()
    log = re.fullmatch(r"balora: unexpected error: KeyError: 'first line.*\(the traceback is in (.*)\)", line)[1]
    assert "\x1b" not in line
    assert Path(log).parent == cache / "logs"
    text = Path(log).read_text()
    assert text.startswith("balora")
    assert "Python 3" in text
    assert "transformers" in text
    assert "in fail" in text


def test_a_long_message_is_cut_off(capsys):
    def fail_at_length() -> None:
        raise RuntimeError("x" * 10_000)

    assert terminal.report_errors(fail_at_length) == 1
    assert len(capsys.readouterr().err) < 700


def test_an_error_without_a_message_is_named_by_its_type(capsys):
    def fail_silently() -> None:
        raise AssertionError

    assert terminal.report_errors(fail_silently) == 1
    assert "unexpected error: AssertionError (the" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("why"), BALoraError("r: wrong")])
def test_a_variable_shows_the_traceback(error, monkeypatch, capsys, cache):
    def fail_with_it() -> None:
        raise error

    monkeypatch.setenv(terminal.TRACEBACK, "1")
    terminal.report_errors(fail_with_it)
    assert "Traceback" in capsys.readouterr().err
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_leaves_the_log_in_the_temporary_folder(cache, tmp_path, monkeypatch, capsys):
    cache.write_text("a file")
    monkeypatch.setattr(terminal.tempfile, "gettempdir", lambda: str(tmp_path / "temporary"))
    assert terminal.report_errors(fail) == 1
    assert str(tmp_path / "temporary") in capsys.readouterr().err


def test_the_option_shows_the_traceback_of_a_command(tmp_path):
    command = [sys.executable, "-m", "balora.cli", "train", str(tmp_path / "absent.yaml")]
    for option, shown in (("--traceback", True), (None, False)):
        ended = subprocess.run([*command, *([option] if option else [])], capture_output=True, text=True)
        assert ended.returncode == 2
        assert ("Traceback" in ended.stderr) == shown
        assert "absent.yaml: cannot read this recipe" in ended.stderr


def test_missing_packages_of_the_program_are_named(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "balora.study.terminal")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert main(["train", "recipe.yaml"]) == 2
    assert "the program needs datasets, which is not installed: pip install 'balora[program]'" in (
        capsys.readouterr().err
    )


@pytest.fixture
def soon(monkeypatch) -> None:
    monkeypatch.setattr(terminal, "SHOWN_AFTER", 0.02)
    monkeypatch.setattr(terminal, "LINE_EVERY", 0.05)


def test_long_work_is_shown_in_lines_with_the_time_left(soon, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "console", Console(stderr=True, force_terminal=False))
    progress.show_progress_with(terminal.long_work)
    for _ in progress.tracked(range(4), "measuring"):
        time.sleep(0.06)
    with progress.working("loading m"):
        time.sleep(0.06)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "measuring …"
    assert re.fullmatch(r"measuring: [12] of 4, about 0:00 left", lines[1])
    assert lines[-3:] == ["measuring: 0:00 in all", "loading m …", "loading m: 0:00 in all"]


def test_long_work_is_a_bar_on_a_terminal(soon, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=screen, force_terminal=True, width=100))
    progress.show_progress_with(terminal.long_work)
    with progress.working("outer"):  # bars may be nested
        for _ in progress.tracked(iter(range(3)), "inner", total=3):
            time.sleep(0.1)
    assert "inner" in screen.getvalue()
    assert " of 3" not in screen.getvalue()


def test_short_work_is_not_shown_and_neither_is_any_in_a_session(soon, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SHOWN_AFTER", 5)
    progress.show_progress_with(terminal.long_work)
    assert list(progress.tracked(iter("abc"), "letters")) == ["a", "b", "c"]
    monkeypatch.setattr(terminal, "SHOWN_AFTER", 0)
    progress.show_progress_with(None)
    assert list(progress.tracked("abc", "letters")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "status", "said"), [(2, 2, r"failed \(see above\)"), (1, 1, r"failed \(see above\)"), (-9, 1, "SIGKILL")]
)
def test_a_study_says_how_a_run_ended(code, status, said, monkeypatch, tmp_path):
    class Ended:
        sentinel, exitcode = 1, code

        def __init__(self, **kwargs):
            pass

        def start(self):
            pass

        join = start

    class Context:
        Process = Ended

    monkeypatch.setattr(pool_module, "_context", Context)
    monkeypatch.setattr(pool_module.connection, "wait", lambda sentinels: sentinels)
    with pytest.raises(BALoraError, match=said) as caught:
        run_in_processes(["lora, seed 1"], tmp_path, 1, lambda one: None, lambda one: None)
    assert caught.value.status == status


@pytest.fixture
def _shown_at_once(monkeypatch):
    monkeypatch.setattr(terminal, "SHOWN_AFTER", 0.0)
    monkeypatch.setattr(terminal, "LINE_EVERY", 0.0)
    monkeypatch.setattr(terminal, "console", Console(stderr=True, force_terminal=False))
    progress.show_progress_with(terminal.long_work)
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    monkeypatch.setattr(arrow_dataset, "hf_tqdm", terminal.RowsBar)
    yield
    if not bars:
        datasets.enable_progress_bars()


@pytest.mark.usefixtures("_shown_at_once")
def test_mapped_rows_are_shown_with_the_time_left(tmp_path, capsys):
    def slow(row: dict[str, str]) -> dict[str, str]:
        time.sleep(0.1)
        return row

    rows = datasets.Dataset.from_dict({"text": list("abcdef")})
    mapped = rows.map(slow, desc="Tokenizing train dataset")
    mapped.save_to_disk(tmp_path / "rows")
    shown = capsys.readouterr().err
    assert re.search(r"tokenizing train dataset: \d of 6, about 0:0\d left", shown)
    assert datasets.load_from_disk(tmp_path / "rows")["text"][:] == list("abcdef")


@pytest.mark.usefixtures("_shown_at_once")
def test_an_error_while_rows_are_mapped_is_raised():
    def fails(row: dict[str, str]) -> None:
        raise BALoraError(f"row {row['text']}")

    with pytest.raises(BALoraError, match="row a"):
        datasets.Dataset.from_dict({"text": ["a"]}).map(fails)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.tsv", "rows.csv"])
def test_reading_a_file_is_reported_line_by_line(name, tmp_path):
    line = {"rows.jsonl": '{"text": "a"}', "rows.tsv": "a\tb", "rows.csv": "a,b"}[name]
    (tmp_path / name).write_text(f"{line}\n" * 20)
    reported, done = [], []

    @contextmanager
    def display(description: str, total: int | None) -> Iterator[Callable[[], None]]:
        reported.append((description, total))
        yield lambda: done.append(description)

    progress.show_progress_with(display)
    load_table(str(tmp_path / name))
    [(description, total)] = reported
    assert description == f"reading {tmp_path / name}"
    assert total == len(done) >= 20
