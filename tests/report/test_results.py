import json
import math

import pytest

from balora.errors import BALoraError
from balora.report import Run, read_results, write_results

RUN = {
    "method": "lora",
    "seed": 42,
    "task": "mrpc",
    "metrics": {"accuracy": 0.7},
    "train_seconds": 12.3,
    "peak_memory_mb": 812.0,
    "trainable_parameters": 12345,
}


def test_what_is_written_is_read_back(tmp_path, runs):
    path = tmp_path / "deeper" / "results.json"
    write_results(path, runs)
    assert read_results(path) == runs
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_ids_tell_tasks_methods_and_seeds_apart(suite):
    assert len({run.id for run in suite}) == len(suite)
    assert suite[0].id == "cola-lora-1"


def test_nan_and_infinity_are_written_as_null_and_read_as_nan(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [Run("lora", 1, "mrpc", {"f1": math.nan, "perplexity": math.inf, "skew": 0.5}, 1.0, 2.0, 3)])
    assert json.loads(path.read_text())["runs"][0]["metrics"] == {"f1": None, "perplexity": None, "skew": 0.5}
    metrics = read_results(path)[0].metrics
    assert math.isnan(metrics["f1"])
    assert math.isnan(metrics["perplexity"])
    assert metrics["skew"] == 0.5


def test_a_failed_write_leaves_the_old_file(tmp_path, runs):
    path = tmp_path / "results.json"
    write_results(path, runs)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, [Run("lora", 1, "mrpc", {}, math.nan, 0.0, 0)])
    assert read_results(path) == runs


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"method": ""}, r"runs\[0\]\.method must be a non-empty text"),
        ({"seed": "42"}, r"runs\[0\]\.seed must be a whole number, got '42'"),
        ({"seed": True}, r"runs\[0\]\.seed must be a whole number"),
        ({"task": None}, r"runs\[0\]\.task must be"),
        ({"metrics": [0.7]}, r"runs\[0\]\.metrics must be an object"),
        ({"metrics": {"accuracy": "high"}}, r"runs\[0\]\.metrics\.accuracy must be a finite number, got 'high'"),
        ({"train_seconds": None}, r"runs\[0\]\.train_seconds must be a finite number"),
        ({"trainable_parameters": 1.5}, r"runs\[0\]\.trainable_parameters must be a whole number"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, change, complaint):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"runs": [RUN | change]}))
    with pytest.raises(BALoraError, match=complaint) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"runs": [', "not strict JSON"),
        ('{"runs": [{"metrics": {"f1": NaN}}]}', "NaN is not a JSON value"),
        (json.dumps({"runs": [RUN]}).replace("0.7", "1e999"), r"metrics\.accuracy must be a finite number, got inf"),
        ("[]", 'a list under "runs"'),
        ('{"runs": {}}', 'a list under "runs"'),
        ('{"runs": [3]}', r"runs\[0\] must be an object"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, complaint):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(BALoraError, match=complaint):
        read_results(path)


def test_unreadable_files_and_repeated_runs_are_refused(tmp_path):
    with pytest.raises(BALoraError, match=r"absent\.json: the results cannot be read"):
        read_results(tmp_path / "absent.json")
    path = tmp_path / "results.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BALoraError, match="UTF-8"):
        read_results(path)
    path.write_text(json.dumps({"runs": [RUN, RUN]}))
    with pytest.raises(BALoraError, match=r"runs\[1\] repeats method 'lora' with seed 42 on task 'mrpc'"):
        read_results(path)


def test_intervals_come_back_and_files_without_them_are_read(tmp_path):
    run = Run("lora", 0, "t", {"accuracy": 0.5}, 1.0, 1.0, 1, {"accuracy": (0.25, 0.75)})
    write_results(tmp_path / "results.json", [run])
    assert read_results(tmp_path / "results.json") == [run]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["runs"][0].pop("intervals") == {"accuracy": [0.25, 0.75]}
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "old.json")[0].intervals == {}
    content["runs"][0]["intervals"] = {"accuracy": [0.25]}
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(BALoraError, match=r"runs\[0\]\.intervals must be an object of \[low, high\] pairs"):
        read_results(tmp_path / "wrong.json")


def test_rows_come_back_and_files_without_them_are_read(tmp_path):
    run = Run("lora", 0, "t", {"accuracy": 0.5}, 1.0, 1.0, 1, rows={"train": 90, "validation": 10})
    write_results(tmp_path / "results.json", [run])
    assert read_results(tmp_path / "results.json") == [run]
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["runs"][0].pop("rows") == {"train": 90, "validation": 10}
    (tmp_path / "old.json").write_text(json.dumps(content))
    assert read_results(tmp_path / "old.json")[0].rows == {}
    content["runs"][0]["rows"] = {"train": "many"}
    (tmp_path / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(BALoraError, match=r"runs\[0\]\.rows\.train must be a whole number"):
        read_results(tmp_path / "wrong.json")
