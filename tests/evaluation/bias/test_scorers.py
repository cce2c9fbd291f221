"""Scorers by name: a saved tiny classifier against its own softmax, a function, and every way to be wrong."""

import sys

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import SMALL, word_tokenizer

from balora import BALoraError
from balora.evaluation.bias import load_scorer

TEXTS = ["a b c", "b", "c c c a b", ""]


def saved(folder, labels: list[str], **settings) -> str:
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    model = hf.BertForSequenceClassification(hf.BertConfig(**SMALL, **names, **settings))
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    model.save_pretrained(folder)
    word_tokenizer(closes=True).save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def naive(folder: str, activation) -> np.ndarray:
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    rows = [activation(model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]) for text in TEXTS]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_classifier_s_score_is_the_probability_of_the_label(tmp_path, batch_size):
    folder = saved(tmp_path, ["negative", "neutral", "very: positive"])
    p = naive(folder, lambda logits: logits.softmax(-1))
    assert np.ptp(p, axis=0).min() > 1e-3
    for place, label in enumerate(["negative", "neutral", "very: positive"]):
        found = load_scorer(f"transformers:{folder}:{label}", batch_size=batch_size)(TEXTS)
        np.testing.assert_allclose(found, p[:, place], atol=1e-5)


def test_of_two_labels_the_second_is_meant_and_of_one_that(tmp_path):
    two, one, many = (tmp_path / name for name in ("two", "one", "many"))
    folder = saved(two, ["no", "yes"])
    np.testing.assert_allclose(
        load_scorer(f"transformers:{folder}")(TEXTS), naive(folder, lambda x: x.softmax(-1))[:, 1], atol=1e-5
    )
    folder = saved(one, ["toxic"])
    found = load_scorer(f"transformers:{folder}")(TEXTS)
    np.testing.assert_allclose(found, naive(folder, torch.sigmoid)[:, 0], atol=1e-5)
    folder = saved(many, ["toxic", "obscene", "threat"], problem_type="multi_label_classification")
    found = load_scorer(f"transformers:{folder}:obscene")(TEXTS)
    np.testing.assert_allclose(found, naive(folder, torch.sigmoid)[:, 1], atol=1e-5)


def test_texts_beyond_the_classifier_s_context_are_cut(tmp_path):
    folder = saved(tmp_path, ["no", "yes"])
    score = load_scorer(f"transformers:{folder}:yes")
    long = score(["a b c " * 100])
    assert long == pytest.approx(score([("a b c " * 100)[: 2 * 63]]))


def test_a_path_may_be_written_as_in_recipes(tmp_path, monkeypatch):
    saved(tmp_path / "rater", ["no", "yes"])
    monkeypatch.setenv("RATERS", str(tmp_path))
    assert load_scorer("transformers:${RATERS}/rater:no")(TEXTS).shape == (4,)
    monkeypatch.syspath_prepend(tmp_path.parent)
    (tmp_path / "__init__.py").touch()
    assert load_scorer(f"transformers:package:{tmp_path.name}/rater:no")(TEXTS).shape == (4,)


def test_a_classifier_that_is_none_is_refused(tmp_path):
    torch.manual_seed(0)
    hf.BertModel(hf.BertConfig(**SMALL)).save_pretrained(tmp_path / "encoder")
    word_tokenizer().save_pretrained(tmp_path / "encoder")
    with pytest.raises(BALoraError, match="encoder: no trained text classifier, it has no classifier"):
        load_scorer(f"transformers:{tmp_path / 'encoder'}")
    with pytest.raises(BALoraError, match="nowhere' does not load with AutoModelForSequenceClassification"):
        load_scorer(f"transformers:{tmp_path / 'nowhere'}")


def test_labels_are_listed_where_one_must_be_named(tmp_path):
    folder = saved(tmp_path, ["negative", "neutral", "positive"])
    with pytest.raises(BALoraError, match="say which label to take; there are negative, neutral, positive"):
        load_scorer(f"transformers:{folder}")
    with pytest.raises(BALoraError, match="no label 'joy'; there are negative, neutral, positive"):
        load_scorer(f"transformers:{folder}:joy")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of one's own, of which a test writes the source."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_ratings.py").write_text(
        "from math import nan\n"
        "def length(texts): return [len(text) for text in texts]\n"
        "def one_short(texts): return [0.0] * (len(texts) - 1)\n"
        "def unknown(texts): return [nan] * len(texts)\n"
        "def words(texts): return ['good'] * len(texts)\n"
        "def nested(texts): return [[0.0]] * len(texts)\n"
        "def nothing(texts): return None\n"
        "number = 3\n"
    )
    yield
    sys.modules.pop("own_ratings", None)


def test_a_function_of_one_s_own_is_imported_by_name_alone(own):
    assert "own_ratings" not in sys.modules
    found = load_scorer("own_ratings:length")(("a", "bcd", ""))
    assert found.tolist() == [1, 3, 0]
    assert found.dtype == np.float64


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one_short", r"for each of 3 texts; it gave shape \(2,\)"),
        ("nested", r"for each of 3 texts; it gave shape \(3, 1\)"),
        ("unknown", "it gave NaN or infinite ones among them"),
        ("words", "gave no list of numbers"),
        ("nothing", r"gave shape \(\)"),
    ],
)
def test_scores_that_are_none_are_refused(own, function, said):
    with pytest.raises(BALoraError, match=f"scorer: own_ratings:{function} .*{said}"):
        load_scorer(f"own_ratings:{function}")(["a", "b", "c"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("own_ratings:missing", "own_ratings has no function 'missing'"),
        ("own_ratings:number", "own_ratings has no function 'number'"),
        ("no_such_module_here:length", "cannot be imported .*; install it, or put its folder into PYTHONPATH"),
        ("length", "'length' is neither transformers:MODEL:LABEL nor package.module:function"),
        ("own_ratings:length(1)", "is neither"),
        ("transformers:", "is neither"),
    ],
)
def test_names_of_nothing_say_so(own, spec, said):
    with pytest.raises(BALoraError, match=said):
        load_scorer(spec)
