import numpy as np
import pytest
import torch
from audit_models import assert_is, texts
from datasets import Dataset

from balora.audit.classes import class_log_probabilities, encoded_rows, measure_classes
from balora.errors import BALoraError
from balora.evaluation.classification import class_probabilities, classification_metrics


def rows_of(count=24):
    labels = [0, 0, 1, 0, 2, 1] * (count // 6)
    return Dataset.from_dict({"text": texts(count), "label": labels})


def test_scores_are_those_of_the_evaluation(classifiers):
    audited, *models, tokenizer = classifiers
    rows = rows_of()
    answers = class_log_probabilities(audited, rows, on="own", max_length=None, batch_size=5)
    figures = {f.name: f for f in measure_classes(audited, *answers, labels=rows["label"], on="own")}
    p = [class_probabilities(model, tokenizer, rows["text"]) for model in models]
    expected = [classification_metrics(own, np.array(rows["label"])) for own in p]
    for name in ("accuracy", "minority_recall"):
        assert_is(figures[name], expected, [name])
    assert 0 < expected[0]["accuracy"] < 1
    assert_is(figures["entropy"], [{"e": -(own * np.log(own)).sum(1).mean()} for own in p], ["e"])
    divergence = (p[0] * (np.log(p[0]) - np.log(p[1]))).sum(1).mean()
    assert figures["kl_to_base"].tuned.value == pytest.approx(divergence, rel=1e-5)
    assert figures["top1_agreement"].tuned.value == np.mean(p[0].argmax(1) == p[1].argmax(1))
    assert all(f.unit == "rows" and f.units == 24 for f in figures.values())


def test_without_labels_there_is_no_accuracy(classifiers):
    audited = classifiers[0]
    rows = rows_of().remove_columns("label")
    answers = class_log_probabilities(audited, rows, on="own", max_length=None, batch_size=50)
    names = [f.name for f in measure_classes(audited, *answers, labels=None, on="own")]
    assert names == ["entropy", "kl_to_base", "top1_agreement"]


def test_pairs_of_texts_are_read_with_their_segments(classifiers):
    audited, base, tuned, tokenizer = classifiers
    rows = Dataset.from_dict({"text": texts(4), "text_pair": texts(4, seed=1)})
    answers = class_log_probabilities(audited, rows, on="own", max_length=None, batch_size=3)
    inputs = tokenizer(rows["text"][:], rows["text_pair"][:], padding=True, return_tensors="pt")
    for model, log_p in zip((base, tuned), answers, strict=True):
        with torch.no_grad():
            expected = model(**inputs).logits.log_softmax(-1)
        np.testing.assert_allclose(log_p, expected, atol=1e-5)


def test_a_row_beyond_the_context_is_cut_only_where_that_is_asked_for(classifiers):
    audited = classifiers[0]
    rows = Dataset.from_dict({"text": ["the dog", "the " * 70]})
    with pytest.raises(BALoraError, match=r"^rows\.csv, row 2: 72 tokens, .*set max_length: 64"):
        encoded_rows(audited, rows, on="rows.csv", max_length=None)
    with pytest.raises(BALoraError, match=r"^max_length: 65 is beyond"):
        encoded_rows(audited, rows, on="rows.csv", max_length=65)
    assert [len(row["input_ids"]) for row in encoded_rows(audited, rows, on="", max_length=20)] == [4, 20]
