"""The output folder: locked while a command writes to it, made or refused in one line, free until it holds results."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.study.output_dir import claimed
from balora.utils.locks import LOCK_FILE, locked

HOLD = """
import sys
from pathlib import Path
from balora.utils.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    return Recipe(model_name_or_path="m", train_file="t", output_dir=str(tmp_path / "out"))


def refused(recipe: Recipe) -> str:
    """Return why a recipe may not use its folder."""
    with pytest.raises(BALoraError) as caught, claimed(recipe):
        pytest.fail("entered")
    return str(caught.value)


def test_a_second_process_is_refused_and_told_who_holds_the_folder(recipe, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLD, str(out)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert re.search(rf"out is in use by process {holder.pid} on .*; wait for it", refused(recipe))
    assert sorted(path.name for path in out.iterdir()) == [LOCK_FILE]
    holder.kill()  # a killed process holds nothing
    holder.wait()
    assert (out / LOCK_FILE).exists()
    with claimed(recipe):
        assert str(os.getpid()) in (out / LOCK_FILE).read_text()
    assert sorted(path.name for path in out.iterdir()) == ["recipe.yaml"]


def test_an_empty_folder_is_removed_when_the_lock_is_released(tmp_path):
    with locked(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a" / "b").exists()


def test_a_folder_that_cannot_be_created_is_one_line(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "cannot create .*directory"),
        (tmp_path / ("x" * 300), "cannot create .*name too long"),
    ):
        assert re.search(f"^output_dir: .*{said}", refused(replace(recipe, output_dir=str(path))))


def test_settings_may_change_until_something_was_trained(recipe, tmp_path):
    changed = replace(recipe, r=3)

    def start(own: Recipe, trains: bool) -> None:
        with claimed(own) as directory:
            (directory / "runs" / "lora-seed1").mkdir(parents=True, exist_ok=True)
            if trains:
                (directory / "runs" / "lora-seed1" / "trainer_state.json").write_text("{}")

    start(recipe, trains=False)
    start(changed, trains=True)
    assert "\nr: 3\n" in (tmp_path / "out" / "recipe.yaml").read_text()
    assert re.search(r"holds another run, which differs in r \(3 there, ", refused(recipe))
    start(changed, trains=False)
