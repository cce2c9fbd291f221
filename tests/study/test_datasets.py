"""The rows on which a recipe trains and evaluates: held out in groups, thinned, mixed of two tasks."""

import json
from collections import Counter

import pytest

from balora import BALoraError
from balora.recipe import Recipe
from balora.study.datasets import Datasets, read_datasets

HOURS = [f"2023-0{1 + i // 40}-{1 + i % 20:02}T{i % 24:02}:00:00+00:00" for i in range(80)]


@pytest.fixture
def files(tmp_path):
    """Write eighty rows of twenty templates, three in four of class yes, and thirty rows of another task."""
    table = [
        {
            "text": f"template {i // 4}, {i}",
            "label": "no" if i % 4 == 0 else "yes",
            "template": i // 4,
            "created_date": HOURS[i],
        }
        for i in range(80)
    ]
    other = [{"sentence": f"other {i}", "answer": ["no", "yes"][i % 2]} for i in range(30)]
    for name, rows in {"main": table, "other": other}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def sets(files, **settings) -> Datasets:
    fixed = {"model_name_or_path": "unused", "train_file": str(files / "main.jsonl"), "label_column": "label"}
    return read_datasets(Recipe(**{**fixed, **settings}), None)


def templates(rows) -> set[str]:
    return {text.split(",")[0] for text in rows["text"]}


GROUPS = {"validation_share": 0.25, "validation_group_column": "template"}


def test_whole_groups_are_held_out(files):
    found = sets(files, **GROUPS)
    assert (len(templates(found.train)), len(templates(found.validation))) == (15, 5)
    assert not templates(found.train) & templates(found.validation)
    assert set(found.train.column_names) == {"text", "label"} == set(found.validation.column_names)
    few = sets(files, **GROUPS, max_train_samples=10)
    assert (len(few.train), few.validation["text"][:]) == (10, found.validation["text"][:])
    assert few.spent == set(found.train["text"]) > set(few.train["text"])
    assert sets(files, **GROUPS).validation["text"][:] == found.validation["text"][:]
    assert templates(sets(files, **GROUPS, subset_seed=3).validation) != templates(found.validation)


def test_a_class_ratio_does_not_change_the_rows_held_out(files):
    plain, thinned = sets(files, **GROUPS), sets(files, **GROUPS, class_ratio=[1, 10], max_train_samples=22)
    assert Counter(thinned.train["label"]) == {0: 2, 1: 20}
    assert thinned.validation["text"][:] == plain.validation["text"][:]
    assert set(thinned.train["text"]) < set(plain.train["text"])


def test_training_rows_are_thinned_in_time_and_evaluation_rows_are_not(files):
    evaluation = {"validation_file": str(files / "main.jsonl")}
    monthly, daily = (sets(files, **evaluation, time_frequency=f) for f in ("monthly", "daily"))
    assert (len(monthly.train), len(daily.train)) == (2, 40)
    assert set(monthly.train["text"]) < set(daily.train["text"])
    assert len(monthly.validation) == 80


def test_held_out_rows_are_not_thinned(files):
    plain, thinned = sets(files, **GROUPS), sets(files, **GROUPS, time_frequency="monthly")
    assert thinned.validation["text"][:] == plain.validation["text"][:]
    assert len(thinned.train) == 2
    assert set(thinned.train.column_names) == {"text", "label"} == set(thinned.validation.column_names)


def other(files, **settings) -> dict:
    return {
        "auxiliary": {
            "train_file": str(files / "other.jsonl"),
            "text_column": "sentence",
            "label_column": "answer",
            **settings,
        }
    }


def test_two_tasks_are_mixed_in_the_ratio_and_evaluated_separately(files):
    mixed = {**other(files, validation_share=0.2), **GROUPS, "mixture_ratio": [75, 25]}
    found = sets(files, **mixed, max_train_samples=40)
    counts = Counter(text.split()[0] for text in found.train["text"])
    assert counts == {"template": 30, "other": 10}
    assert len(set(found.train["text"])) == 40
    assert {text.split()[0] for text in found.validation["text"]} == {"template"}
    assert {text.split()[0] for text in found.others["auxiliary"]["text"]} == {"other"}
    assert not set(found.others["auxiliary"]["text"]) & set(found.train["text"])
    assert "task_ids" not in found.train.column_names
    assert len(sets(files, **mixed).train) == 80  # all 60 of one and a third as many of the other
    assert len(sets(files, **mixed | {"mixture_ratio": [1, 0]}).train) == 60


def test_an_auxiliary_task_has_its_own_defaults(files):
    """The primary task's share and group column do not apply to it."""
    found = sets(files, **other(files), **GROUPS, mixture_ratio=[0, 1])
    assert len(found.train) == 30
    assert found.others == {}


def test_each_row_has_its_task_id_if_each_task_has_an_adapter(tmp_path):
    for name in ("main", "other"):
        lines = [json.dumps({"prompt": f"{name} {i}", "completion": " x"}) + "\n" for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    recipe = Recipe(
        model_name_or_path="unused",
        train_file=str(tmp_path / "main.jsonl"),
        validation_share=0.5,
        auxiliary={"train_file": str(tmp_path / "other.jsonl"), "validation_share": 0.5},
        task_names=["primary", "auxiliary"],
        method="lora",
    )
    found = read_datasets(recipe, None)
    for rows in (found.train, found.validation, found.others["auxiliary"]):
        expected = [int(prompt.startswith("other")) for prompt in rows["prompt"]]
        assert rows["task_ids"][:] == expected
    assert Counter(found.train["task_ids"]) == {0: 10, 1: 10}


def message(name: str, role: str, hour: int, *replies: dict) -> dict:
    return {
        "message_id": name,
        "text": f"text of {name}",
        "role": role,
        "lang": "en",
        "created_date": f"2023-02-{1 + hour // 24:02}T{hour % 24:02}:10:00+00:00",
        "labels": {"quality": {"value": 0.8, "count": 1}},
        "rank": None,
        "deleted": False,
        "synthetic": False,
        "review_result": True,
        "replies": list(replies),
    }


@pytest.fixture
def trees(tmp_path) -> str:
    """Write ten trees of two conversations each, two trees per hour."""
    lines = []
    for i in range(10):
        replies = [message(f"reply {i} {j}", "assistant", i // 2) | {"rank": j} for j in range(2)]
        prompt = message(f"prompt {i}", "prompter", i // 2, *replies)
        tree = {"message_tree_id": prompt["message_id"], "tree_state": "ready_for_export", "prompt": prompt}
        lines.append(json.dumps(tree) + "\n")
    (tmp_path / "trees.jsonl").write_text("".join(lines))
    return str(tmp_path / "trees.jsonl")


def test_trees_are_conversations_held_out_by_tree(trees):
    how = {"model_name_or_path": "unused", "train_file": trees, "validation_share": 0.3}
    found = read_datasets(Recipe(**how, oasst={}), None)
    assert found.train.column_names == found.validation.column_names == ["messages"]
    asked = [{row["messages"][0]["content"] for row in rows} for rows in (found.train, found.validation)]
    assert [len(side) for side in asked] == [7, 3]
    assert not asked[0] & asked[1]
    assert (len(found.train), len(found.validation)) == (14, 6)
    best = read_datasets(Recipe(**how, oasst={"max_rank": 0}), None)
    assert (len(best.train), len(best.validation)) == (7, 3)
    hourly = read_datasets(Recipe(**how, oasst={}, time_frequency="hourly"), None)
    assert len(hourly.train) == len({int(prompt.split()[-1]) // 2 for prompt in asked[0]})
    assert hourly.validation["messages"][:] == found.validation["messages"][:]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"oasst": {"max_ranks": 0}}, "oasst: .*max_ranks"),
        ({"oasst": {"languages": ["xx"]}}, "oasst: .*'xx', which no message has"),
        ({"oasst": {}, "label_column": "label"}, "oasst: conversations are for causal"),
        ({"oasst": {}, "validation_share": 0.1, "validation_group_column": "x"}, "held out by their trees"),
    ],
    ids=str,
)
def test_invalid_settings_of_trees_raise(trees, settings, said):
    with pytest.raises(BALoraError, match=said):
        read_datasets(Recipe(model_name_or_path="unused", train_file=trees, **settings), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_group_column": "template"}, "validation_group_column: .* set validation_share"),
        ({"auxiliary": {"learning_rate": 1.0}}, "auxiliary: 'learning_rate' is not a setting about rows"),
        ({"auxiliary": {"label_column": "label"}}, "auxiliary: train_file, dataset_name: one of the two is missing"),
        ({"mixture_ratio": [1, 2, 3]}, r"mixture_ratio: \[1, 2, 3\] has 3 numbers"),
        ({"task_names": ["primary", "auxiliary"]}, "where it has an `auxiliary` task"),
        ({"task_names": ["a", "b"], "auxiliary": {"train_file": "x"}}, "rows are of the tasks primary, auxiliary"),
        (
            {"time_frequency": "daily", "streaming": True, "label_column": None},
            "streaming: rows can be mixed, or thinned",
        ),
        ({**GROUPS, "validation_group_column": "kind"}, "no column 'kind'"),
        ({**GROUPS, "validation_group_column": "one"}, "has one value in 'one'"),
    ],
    ids=str,
)
def test_invalid_settings_raise(files, settings, message):
    rows = [json.loads(line) | {"one": 1} for line in (files / "main.jsonl").read_text().splitlines()]
    (files / "main.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BALoraError, match=message):
        sets(files, **settings)


def test_mixing_tasks_with_other_classes_raises(files):
    rows = [{"sentence": "text", "answer": name} for name in ("good", "bad", "fair")]
    (files / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BALoraError, match=r"auxiliary: its classes are \['bad', 'fair', 'good'\]"):
        sets(files, **other(files))


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (
            1,
            {"validation_share": 0.5, "label_column": None, "text_column": "text"},
            "main.jsonl has 1 of the rows to split; at least two are needed",
        ),
        (3, {"validation_share": 0.9}, "0.9 of the 3 rows of .* leaves none to train on; use at most 0.666"),
        (80, {"validation_share": 0.5, "max_train_samples": 1}, "has 1 of the rows to split"),
        (
            80,
            {**GROUPS, "validation_share": 0.99},
            "0.99 of the 20 values of 'template' of .* leaves none",
        ),
    ],
)
def test_a_share_that_leaves_no_training_row_raises(files, rows, given, message):
    content = (files / "main.jsonl").read_text().splitlines()
    (files / "main.jsonl").write_text("\n".join(content[:rows]))
    with pytest.raises(BALoraError, match=f"validation_share: .*{message}"):
        sets(files, **given)


@pytest.mark.parametrize("share", [0.01, 0.5])
def test_two_rows_can_be_split(files, share):
    content = (files / "main.jsonl").read_text().splitlines()
    (files / "main.jsonl").write_text("\n".join(content[:2]))
    found = sets(files, validation_share=share)
    assert (len(found.train), len(found.validation)) == (1, 1)


@pytest.mark.parametrize(("value", "problem"), [(None, "is missing"), ([1], "expected text or a number as in row 1")])
def test_groups_that_cannot_be_compared_raise(files, value, problem):
    lines = [json.loads(line) for line in (files / "main.jsonl").read_text().splitlines()]
    lines[2]["template"] = value
    (files / "main.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(BALoraError, match=f"row 3, field 'template': {problem}"):
        sets(files, **GROUPS)
