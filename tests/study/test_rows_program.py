"""What the program says about rows that it cannot train on or measure as they are, before anything is trained."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tiny_folder import tiny

from balora.cli import main
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.study.data_digests import COMMENT, digests_comment

SHORT = {"prompt": "who sat ?", "completion": "cat"}
LONG = {"prompt": "who sat on the mat and ran and sat on a hill ?", "completion": "dog"}
ENDLESS = {"prompt": "who ?", "completion": "the cat sat on a mat and the dog ran"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny(folder)
    return folder


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def settings(model, tmp_path) -> dict:
    """Return the settings of a valid recipe of a few steps."""
    return {
        "method": "lora",
        "model_name_or_path": str(model),
        "train_file": written(tmp_path / "train.jsonl", [SHORT] * 8),
        "validation_file": written(tmp_path / "eval.jsonl", [SHORT] * 4),
        "output_dir": str(tmp_path / "out"),
        "r": 2,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "training_arguments": {"use_cpu": True},
    }


def with_method(settings: dict, method: str) -> dict:
    """Return the settings for a method, `r` only for those that have a rank."""
    return {key: value for key, value in settings.items() if key != "r" or method != "houlsby"} | {"method": method}


def train(settings: dict, tmp_path: Path, command: str = "train") -> int:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return main([command, str(path)])


def error_of(settings: dict, tmp_path: Path, capsys, command: str = "train") -> str:
    """Run a recipe that must fail, and return its one line of error."""
    assert train(settings, tmp_path, command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("balora: error:")]
    return line


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_rows_that_lose_their_completion_or_its_end_are_counted_and_named(settings, tmp_path, method):
    written(tmp_path / "train.jsonl", [SHORT, LONG, ENDLESS, SHORT, LONG])
    settings = with_method(settings, method) | {"max_length": 8}
    message = (
        "train rows: with max_length: 8, 2 of 5 rows lose their whole completion and are left out .rows 2, 5. and "
        "1 of 5 rows lose their end .row 3."
    )
    with pytest.warns(UserWarning, match=message):
        assert train(settings, tmp_path) == 0


def test_rows_that_keep_everything_are_not_reported(settings, tmp_path, recwarn):
    assert train({**settings, "max_length": 8}, tmp_path) == 0
    assert not [one for one in recwarn if "max_length" in str(one.message)]


@pytest.mark.parametrize("file", ["train", "eval"])
def test_a_limit_that_leaves_no_completion_is_an_error(settings, tmp_path, capsys, file):
    written(tmp_path / f"{file}.jsonl", [LONG] * 4)
    name = {"train": "train", "eval": "validation"}[file]
    said = error_of({**settings, "max_length": 8}, tmp_path, capsys)
    assert f"max_length: 8 leaves nothing to learn in any row of the {name} rows; use more" in said


def test_texts_of_one_token_have_no_perplexity(settings, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("cat\ndog\n")
    settings["perplexity_file"] = str(tmp_path / "texts.txt")
    assert "texts.txt: no text has two tokens" in error_of(settings, tmp_path, capsys)
    (tmp_path / "texts.txt").write_text("the cat sat\ndog\n")
    with pytest.warns(UserWarning, match="1 of 2 texts have fewer than two tokens and are left out, text 2 first"):
        assert train(settings, tmp_path) == 0


def test_a_stream_reports_the_first_row_of_each_kind(settings, tmp_path):
    written(tmp_path / "train.jsonl", [SHORT, LONG, ENDLESS, SHORT, LONG])
    streamed = {"streaming": True, "train_sampling_strategy": "sequential"}
    with pytest.warns(UserWarning, match="max_length: 8") as said:
        assert train({**settings, **streamed, "max_length": 8}, tmp_path) == 0
    texts = [str(one.message) for one in said if "max_length" in str(one.message)]
    assert sorted(texts) == [
        "balora: train rows, row 2: with max_length: 8 it loses its whole completion and is left out, as later rows "
        "may; use more to keep it",
        "balora: train rows, row 3: with max_length: 8 it loses its end, as later rows may; use more to keep it",
    ]


def test_texts_with_labels_that_lose_their_end_are_counted(settings, tmp_path):
    rows = [{"text": text, "label": label} for text in ("cat sat", "the cat sat on a mat") for label in ("no", "yes")]
    for name in ("train", "eval"):
        written(tmp_path / f"{name}.jsonl", rows)
    with pytest.warns(UserWarning, match=r"train\.jsonl: with max_length: 4, 2 of 4 rows lose their end .rows 3, 4."):
        assert train({**settings, "label_column": "label", "max_length": 4}, tmp_path) == 0


@pytest.mark.parametrize("setting", ["train_file", "validation_file", "perplexity_file", "model_name_or_path"])
def test_another_content_under_the_same_name_is_another_run(settings, tmp_path, capsys, setting):
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat sat on a mat"}\n')
    copy = tmp_path / "model"
    shutil.copytree(settings["model_name_or_path"], copy)
    settings |= {"perplexity_file": str(tmp_path / "texts.jsonl"), "model_name_or_path": str(copy)}
    assert train(settings, tmp_path) == 0
    assert train(settings, tmp_path) == 0
    changed = copy / "tokenizer_config.json" if setting == "model_name_or_path" else Path(settings[setting])
    content = changed.read_text()
    changed.write_text(content + "\n" if setting == "model_name_or_path" else content.replace("sat", "ran"))
    said = error_of(settings, tmp_path, capsys)
    assert f"out holds a run with other content of {setting} ({settings[setting]} has changed since)" in said
    changed.write_text(content)
    assert train(settings, tmp_path) == 0


def test_files_of_tasks_and_benchmarks_have_digests_too(settings, tmp_path):
    tasks = {"one": {"train_file": settings["train_file"]}, "two": {"train_file": "${NO_SUCH_VARIABLE}/train.jsonl"}}
    benchmarks = {"wikitext2": {"file": settings["validation_file"], "max_samples": 3}}
    recipe = Recipe(**settings, tasks=tasks, benchmarks=benchmarks)
    found = json.loads(digests_comment(recipe).removeprefix(COMMENT))
    assert set(found) == {
        "model_name_or_path", "train_file", "validation_file", "tasks.one.train_file", "benchmarks.wikitext2.file"
    }  # fmt: skip
    assert found["train_file"] == found["tasks.one.train_file"] != found["validation_file"]
    assert found["validation_file"] == found["benchmarks.wikitext2.file"]


def test_glue_tasks_have_digests_of_their_files(tmp_path):
    for name in ("RTE", "CoLA"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev.tsv").write_text(name)
    tasks = {"rte": {"glue_task": "rte"}, "cola": {"glue_task": "cola"}}
    recipe = Recipe(model_name_or_path="unused", glue_dir=str(tmp_path), tasks=tasks)
    found = json.loads(digests_comment(recipe).removeprefix(COMMENT))
    assert set(found) == {"tasks.rte.glue_task.validation_file", "tasks.cola.glue_task.validation_file"}


def test_a_record_without_digests_is_resumed(settings, tmp_path):
    assert train(settings, tmp_path) == 0
    record = tmp_path / "out" / "recipe.yaml"
    record.write_text(record.read_text().split(COMMENT)[0])
    assert train(settings, tmp_path) == 0
    assert COMMENT in record.read_text()


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_batch_that_rows_do_not_fill_is_no_training(settings, tmp_path, capsys, command):
    settings |= {
        "per_device_train_batch_size": 9,
        "training_arguments": {"use_cpu": True, "dataloader_drop_last": True},
    }
    said = error_of(settings, tmp_path, capsys, command)
    assert "dataloader_drop_last: 8 training rows do not fill a batch of 9" in said


def test_packed_rows_that_do_not_fill_a_batch_are_no_training(settings, tmp_path, capsys):
    settings |= {"packing": True, "max_length": 32}
    settings["training_arguments"] = {"use_cpu": True, "dataloader_drop_last": True}
    said = error_of(settings, tmp_path, capsys)
    assert "dataloader_drop_last: 2 training rows do not fill a batch of 4" in said


@pytest.mark.parametrize("method", ["lora", "houlsby"])
def test_dataloader_drop_last_keeps_evaluation_rows(settings, tmp_path, method):
    written(tmp_path / "eval.jsonl", [SHORT, LONG, ENDLESS])
    found = []
    for drop_last in (False, True):
        arguments = {"use_cpu": True, "dataloader_drop_last": drop_last}
        out = tmp_path / f"out-{drop_last}"
        changed = {"output_dir": str(out), "training_arguments": arguments}
        assert train(with_method(settings, method) | changed, tmp_path) == 0
        found.append(json.loads((out / "result.json").read_text())["metrics"]["eval_loss"])
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["lora", "ba-lora", "houlsby"])
def test_the_loss_while_training_is_per_token_at_every_batch_size(settings, tmp_path, method):
    written(tmp_path / "eval.jsonl", [SHORT, ENDLESS, LONG, SHORT, ENDLESS, SHORT])
    for size in (1, 4, 6):
        out = tmp_path / f"out-{size}"
        settings = with_method(settings, method) | {"output_dir": str(out), "per_device_eval_batch_size": size}
        settings["training_arguments"] = {"use_cpu": True, "eval_strategy": "steps", "eval_steps": 2}
        assert train(settings, tmp_path) == 0
        (logged,) = [row["eval_loss"] for row in json.loads((out / "history.json").read_text()) if "eval_loss" in row]
        measured = json.loads((out / "result.json").read_text())["metrics"]["eval_loss"]
        assert logged == pytest.approx(measured, abs=1e-5)


def test_stars_from_a_spreadsheet_are_classes_by_their_names(settings, tmp_path, capsys):
    stars = ["text;stars", "the cat sat;1", "a dog ran;5", "she ran;3", "he sat on a mat;5"]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.csv").write_text("\ufeff" + "\r\n".join(stars))
    settings |= {"train_file": str(tmp_path / "train.csv"), "validation_file": str(tmp_path / "eval.csv")}
    settings["label_column"] = "stars"
    assert "list all classes in label_names, here '1', '3', '5'" in error_of(settings, tmp_path, capsys)
    assert train({**settings, "label_names": [1, 2, 3, 4, 5]}, tmp_path) == 0
    config = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "accuracy" in config["metrics"]
    regression = {"label_names": [], "output_dir": str(tmp_path / "regression")}
    assert train({**settings, **regression}, tmp_path) == 0
    assert "pearson" in json.loads((tmp_path / "regression" / "result.json").read_text())["metrics"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_names": ["a", "b"]}, "label_names: only rows with labels have classes"),
        ({"label_names": ["a"], "label_column": "label"}, "label_names: .* give at least two classes, each once"),
        ({"label_names": [1, "1"], "label_column": "label"}, "label_names: .* give at least two classes, each once"),
        ({"label_names": [1, 2], "glue_task": "rte"}, "label_names: a GLUE task has its own"),
    ],
)
def test_wrong_label_names_raise(settings, given, message):
    with pytest.raises(BALoraError, match=message):
        Recipe(**settings, **given)


@pytest.mark.parametrize("method", ["lora", "ba-lora", "houlsby"])
def test_packing_changes_no_evaluation(settings, tmp_path, method):
    written(tmp_path / "eval.jsonl", [SHORT, ENDLESS, LONG, SHORT])
    found = []
    for packing in (False, True):
        out = tmp_path / f"out-{packing}"
        settings = with_method(settings, method) | {"output_dir": str(out), "learning_rate": 1e-9}
        assert train({**settings, "packing": packing, "max_length": 32}, tmp_path) == 0
        found.append(json.loads((out / "result.json").read_text())["metrics"])
    for name in ("eval_loss", "top1_agreement"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-5)


def test_packing_changes_no_evaluation_of_the_untouched_model(settings, tmp_path):
    written(tmp_path / "eval.jsonl", [SHORT, ENDLESS, LONG, SHORT])
    found = []
    for packing in (False, True):
        out = tmp_path / f"out-{packing}"
        changed = {"packing": packing, "max_length": 32, "output_dir": str(out)}
        assert train({**settings, **changed}, tmp_path, "evaluate") == 0
        found.append(json.loads((out / "result.json").read_text())["metrics"]["eval_loss"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
