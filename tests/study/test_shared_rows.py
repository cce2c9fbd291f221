"""Rows that the runs of a study share: tokenized once, and each run equal to one that ran alone."""

import json
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from tiny_folder import tiny

from balora.cli import main
from balora.study import shared_rows, shared_warnings
from balora.study.shared_rows import share_rows_in, shared
from balora.study.shared_warnings import once_for_task, shown_warnings

ROWS = {"text": ["a b", "c", "d e f"]}


@pytest.fixture
def _sharing(tmp_path):
    share_rows_in(tmp_path)
    yield
    share_rows_in(None)


def test_rows_outside_of_a_study_stay_in_memory():
    rows = Dataset.from_dict(ROWS)
    assert shared_rows._folder is None
    assert shared(rows) is rows


@pytest.mark.usefixtures("_sharing")
def test_the_second_run_reads_what_the_first_one_made(tmp_path):
    def double(text: str) -> dict[str, str]:
        if (tmp_path / "made").exists():
            raise AssertionError("mapped again")
        return {"text": text + text}

    first = shared(Dataset.from_dict(ROWS)).map(double, input_columns="text")
    (tmp_path / "made").touch()
    second = shared(Dataset.from_dict(ROWS)).map(double, input_columns="text")
    assert first["text"][:] == second["text"][:] == ["a ba b", "cc", "d e fd e f"]


@pytest.mark.usefixtures("_sharing")
def test_other_rows_are_not_mistaken_for_them():
    shared(Dataset.from_dict(ROWS))
    other = shared(Dataset.from_dict({"text": ["a b", "c", "d e g"]}))
    assert other["text"][2] == "d e g"


@pytest.mark.parametrize("settings", [{}, {"packing": True, "max_length": 16}], ids=["rows", "packed"])
def test_runs_of_a_study_equal_runs_alone(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("BALORA_CACHE", str(tmp_path / "cache"))
    tiny(tmp_path / "model")
    rows = [
        {"prompt": f"who sat on {where} ?", "completion": who} for where in ("mat", "hill") for who in ("cat", "dog")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    recipe = {
        "model_name_or_path": str(tmp_path / "model"),
        "train_file": str(tmp_path / "rows.jsonl"),
        "validation_file": str(tmp_path / "rows.jsonl"),
        "r": 4,
        "lora_dropout": 0.1,
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        **settings,
    }
    methods = ["ba-lora", "lora"]
    study = {**recipe, "methods": methods, "seeds": [7], "output_dir": str(tmp_path / "study")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["compare", str(tmp_path / "study.yaml")]) == 0
    assert not list((tmp_path / "cache" / "rows").iterdir())
    for method in methods:
        alone = {**recipe, "method": method, "seed": 7, "output_dir": str(tmp_path / method)}
        (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone))
        assert main(["train", str(tmp_path / "alone.yaml")]) == 0
        folders = tmp_path / "study" / "runs" / f"{method}-seed7", tmp_path / method
        one, other = (load_file(folder / "adapter_model.safetensors") for folder in folders)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        one, other = (json.loads((folder / "result.json").read_text())["metrics"] for folder in folders)
        assert one == other


@pytest.mark.parametrize(("folder", "shown"), [(True, 2), (False, 3)], ids=["in a study", "without a folder"])
def test_a_warning_is_shown_once_for_a_task(folder, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_warnings, "_shown", set())
    warned = []
    for task in ("one", "one", "two"):  # three runs
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with once_for_task(task, tmp_path if folder else None):
                warnings.warn("balora: train rows: 2 of 4 rows lose their end", stacklevel=1)
        warned += caught
    assert len(warned) == shown
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with once_for_task("one", tmp_path, shown_warnings()):  # which the study's own process showed
            warnings.warn("balora: train rows: 2 of 4 rows lose their end", stacklevel=1)
            warnings.warn("balora: train rows: 3 of 4 rows lose their end", stacklevel=1)
            warnings.warn("a library's own", stacklevel=1)
    assert [str(one.message)[:21] for one in caught] == ["balora: train rows: 3", "a library's own"]


def test_runs_of_a_study_warn_once_of_the_rows_they_truncate(tmp_path):
    tiny(tmp_path / "model")
    rows = [{"prompt": "who sat on a mat ?", "completion": end} for end in ("cat", "the cat sat on a mat and a hill")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    recipe = {"model_name_or_path": str(tmp_path / "model"), "train_file": str(tmp_path / "rows.jsonl")}
    recipe |= {"methods": ["lora", "pissa"], "max_length": 12, "max_steps": 1, "output_dir": str(tmp_path / "out")}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "balora.cli", "compare", str(tmp_path / "study.yaml")]
    environment = {**os.environ, "BALORA_CACHE": str(tmp_path / "cache")}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stderr
    assert len(re.findall(r"train rows: .* lose their end", said)) == 1, said
