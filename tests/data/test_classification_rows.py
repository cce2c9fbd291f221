"""`to_classification_rows`: class ids that mean the same in every split, regression, and errors by row."""

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from balora.data import load_table, to_classification_rows
from balora.errors import BALoraError


def classified(labels, **settings):
    table = Dataset.from_dict({"text": [f"row {i}" for i in range(len(labels))], "label": labels})
    rows, names = to_classification_rows(table, source="dev.tsv", **settings)
    return rows["label"][:], names


@pytest.mark.parametrize(
    ("name", "settings", "names", "columns"),
    [
        ("glue/RTE", {}, ["entailment", "not_entailment"], {"text", "text_pair"}),
        ("glue/SST-2", {}, ["0", "1"], {"text"}),
        (
            "glue/MRPC",
            {"text_column": "#1 String", "text_pair_column": "#2 String", "label_column": "Quality"},
            ["0", "1"],
            {"text", "text_pair"},
        ),
        ("glue/STS-B", {"label_column": "score"}, [], {"text", "text_pair"}),
    ],
)
def test_glue_train_and_dev_agree(data_dir, name, settings, names, columns):
    train = load_table(str(data_dir / name / "train.tsv"))
    dev = load_table(str(data_dir / name / "dev.tsv"))
    rows, found = to_classification_rows(train, source="train.tsv", **settings)
    dev_rows, kept = to_classification_rows(dev, source="dev.tsv", label_names=found, **settings)
    assert found == kept == names
    assert set(rows.column_names) == {*columns, "label"} == set(dev_rows.column_names)
    raw = dev[settings.get("label_column", "label")]
    expected = [names.index(label) for label in raw] if names else list(map(float, raw))
    assert dev_rows["label"][:] == expected


def test_glue_9k_pairs_are_recognised(data_dir):
    rows, names = to_classification_rows(load_table(str(data_dir / "glue_9k/MNLI/dev.json")), source="dev.json")
    assert names == ["contradiction", "entailment", "neutral"]
    assert rows[0] == {"text": "Salt kept the town fed.", "text_pair": "Salt kept the town thriving.", "label": 1}


def test_question_and_sentence_are_a_pair(data_dir):
    rows, _ = to_classification_rows(load_table(str(data_dir / "glue/QNLI/dev.tsv")), source="dev.tsv")
    assert rows[0]["text"].startswith("What came into force")
    assert rows[0]["text_pair"].startswith("As of that day")


@pytest.mark.parametrize(
    ("labels", "settings", "ids", "names"),
    [
        ([1, 0, 2], {}, [1, 0, 2], ["0", "1", "2"]),
        (["1", "0"], {}, [1, 0], ["0", "1"]),
        ([f"{i}" for i in range(11)], {}, list(range(11)), [f"{i}" for i in range(11)]),
        (["b", "a", "b"], {}, [1, 0, 1], ["a", "b"]),
        ([True, False], {}, [1, 0], ["False", "True"]),
        ([0, 2], {"num_labels": 3}, [0, 2], ["0", "1", "2"]),
        ([5, 1], {"label_names": ["1", "2", "3", "4", "5"]}, [4, 0], ["1", "2", "3", "4", "5"]),
        ([1, 0], {"label_names": ["neg", "pos"]}, [1, 0], ["neg", "pos"]),
        (["1", "pos"], {"label_names": ["neg", "pos"]}, [1, 1], ["neg", "pos"]),
        ([0.0, 1.0], {}, [0.0, 1.0], []),
        (["5.000", "2"], {}, [5.0, 2.0], []),
        (["1.0", "0.0", "1.0"], {}, [1, 0, 1], ["0", "1"]),
        (["2.00", "0", "1.0"], {}, [2, 0, 1], ["0", "1", "2"]),
        (["1.0", "0.0"], {"label_names": []}, [1.0, 0.0], []),
        (["1.0", "0.0"], {"num_labels": 1}, [1.0, 0.0], []),
        (["5.0", "1"], {"label_names": ["1", "2", "3", "4", "5"]}, [4, 0], ["1", "2", "3", "4", "5"]),
        ([1.0, 0.0], {"label_names": ["neg", "pos"]}, [1, 0], ["neg", "pos"]),
        (["1.1", "2.1"], {"label_names": ["1.1", "1.2", "2.1"]}, [0, 2], ["1.1", "1.2", "2.1"]),
        (["1.0", "1"], {"label_names": ["1", "1.0"]}, [1, 0], ["1", "1.0"]),
        (["1e-3", "-2.5"], {}, [0.001, -2.5], []),
        ([3, 4], {"num_labels": 1}, [3.0, 4.0], []),
        ([3, 4], {"label_names": []}, [3.0, 4.0], []),
    ],
)
def test_labels_become_class_ids_and_names(labels, settings, ids, names):
    assert classified(labels, **settings) == (ids, names)


@pytest.mark.parametrize("labels", [[0.0, 1.0], ["1.1", "1.2", "2.1"], ["1.0", "5.0"], ["0.0", "0.5"]])
def test_a_regression_read_from_the_labels_is_reported(labels):
    with pytest.warns(UserWarning, match="'label' are numbers with fractions, so this is a regression; if they are"):
        assert classified(labels) == (list(map(float, labels)), [])


@pytest.mark.parametrize(
    ("labels", "settings"), [([0.5, 1.0], {"label_names": []}), (["1.0", "0.0"], {}), ([1, 0], {})]
)
def test_classes_and_a_named_regression_are_not_reported(labels, settings, recwarn):
    classified(labels, **settings)
    assert not recwarn.list


def test_class_label_brings_its_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    table = Dataset.from_dict({"text": ["x", "y"], "label": [1, 1]}, features=features)
    rows, names = to_classification_rows(table, source="owner/data")
    assert (rows["label"][:], names) == ([1, 1], ["neg", "pos"])
    unlabelled = Dataset.from_dict({"text": ["x"], "label": [-1]}, features=features)
    with pytest.raises(BALoraError, match="row 1, field 'label': label -1 is out of range; class ids are 0 to 1"):
        to_classification_rows(unlabelled, source="owner/data")


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (
            ["a", "c"],
            {"label_names": ["a", "b"]},
            "dev.tsv, row 2, field 'label': 'c' is not one of the labels 'a', 'b'",
        ),
        (
            [0, 2],
            {"label_names": ["0", "1"]},
            "dev.tsv, row 2, field 'label': label 2 is out of range; class ids are 0 to 1",
        ),
        ([0, 3], {"num_labels": 3}, "dev.tsv, row 2, field 'label': label 3 is out of range; class ids are 0 to 2"),
        ([0, -1], {}, "row 2, field 'label': label -1 is out of range; class ids are from 0"),
        ([1, 2], {}, "the labels in 'label' go up to 2 but none is 0; class ids count from 0 without gaps"),
        ([1, 5], {}, "list all classes in label_names, here '1', '5'"),
        (
            ["1,5", "2"],
            {},
            "row 1, field 'label': '1,5' has a decimal comma; write 1.5, or list classes in label_names",
        ),
        ([0, 10**9], {}, "go up to 1000000000 but none is 1"),
        (["a", "a"], {}, "every row has the label 'a' in 'label'"),
        (["a", "b"], {"num_labels": 3}, "has 2 labels \\('a', 'b'\\); num_labels is 3"),
        (["a", None], {}, "row 2, field 'label': is missing"),
        (["a", ""], {}, "row 2, field 'label': is missing"),
        ([["a"]], {}, "row 1, field 'label': expected a class or a number, found \\['a'\\]"),
        (["1.5", "x"], {"label_names": []}, "row 2, field 'label': regression needs a finite number, found 'x'"),
        ([1.5, float("nan")], {}, "row 2, field 'label': regression needs a finite number, found nan"),
        ([0, 1], {"label_column": "gold"}, "dev.tsv: no column 'gold'; it has 'text', 'label'"),
        ([0, 1], {"text_pair_column": "text"}, "text_pair_column is named without text_column"),
    ],
)
def test_wrong_labels_are_named(labels, settings, message):
    with pytest.raises(BALoraError, match=message):
        classified(labels, **settings)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["x"]}, "no known text column among the columns 'body', 'label'; name it with text_column"),
        ({"text": ["x"], "sentence": ["y"]}, "more than one way to read the texts"),
        ({"text": [None]}, "row 1, field 'text': is missing"),
        ({"text": [7]}, "row 1, field 'text': expected text, found 7"),
        ({"sentence1": [" "], "sentence2": [""]}, "row 1, field 'sentence1': is empty"),
    ],
)
def test_wrong_texts_are_named(columns, message):
    with pytest.raises(BALoraError, match=message):
        to_classification_rows(Dataset.from_dict({**columns, "label": [0]}), source="dev.tsv", num_labels=2)


def test_one_text_of_a_pair_may_be_empty():
    table = Dataset.from_dict({"sentence1": ["x"], "sentence2": [""], "label": [0]})
    rows, _ = to_classification_rows(table, source="dev.tsv", num_labels=2)
    assert rows[0] == {"text": "x", "text_pair": "", "label": 0}
