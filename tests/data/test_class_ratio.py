"""`subsample_to_ratio`: counts follow the ratio, rows are unchanged, and draws are reproducible."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.data import load_table, to_classification_rows
from balora.data.subsampling import subsample_to_ratio
from balora.errors import BALoraError

few = settings(max_examples=60, deadline=None)
SHARES = st.integers(1, 100) | st.floats(0.01, 100)


@st.composite
def sets_and_ratios(draw):
    """Labels of 2 to 5 classes, shuffled, and a ratio for them."""
    counts = draw(st.lists(st.integers(1, 60), min_size=2, max_size=5))
    labels = [c for c, count in enumerate(counts) for _ in range(count)]
    draw(st.randoms(use_true_random=False)).shuffle(labels)
    return labels, draw(st.lists(SHARES, min_size=len(counts), max_size=len(counts)))


def rows_of(labels):
    return Dataset.from_dict({"text": [f"row {i}" for i in range(len(labels))], "label": labels})


def kept(labels, ratio, **options):
    """Return the indices of the kept rows."""
    rows = subsample_to_ratio(rows_of(labels), ratio, **{"seed": 1, "source": "train.tsv", **options})
    numbers = [int(text.removeprefix("row ")) for text in rows["text"]]
    assert rows["label"][:] == [labels[i] for i in numbers]
    return numbers


def counts_of(labels, numbers):
    return np.bincount([labels[i] for i in numbers], minlength=max(labels) + 1)


def scales(counts, ratio):
    """Return the range of s for which every count is s·ratio rounded, or 1 if that is 0."""
    slack = 1e-9
    low = max((n - 0.5) / share if n > 1 else 0.0 for n, share in zip(counts, ratio, strict=True))
    high = min((n + 0.5) / share for n, share in zip(counts, ratio, strict=True))
    return low * (1 - slack), high * (1 + slack)


@few
@given(sets_and_ratios(), st.data())
def test_counts_are_the_rounded_ratio_and_rows_are_unchanged(drawn, data):
    labels, ratio = drawn
    numbers = kept(labels, ratio)
    counts = counts_of(labels, numbers)
    assert numbers == sorted(set(numbers))  # none twice, in their order
    assert (counts >= 1).all()
    assert (counts <= np.bincount(labels)).all()
    greatest = min(n / share for n, share in zip(np.bincount(labels), ratio, strict=True))
    low, high = scales(counts, ratio)
    assert low <= greatest <= high  # as many as the scarcest class has rows for

    total = data.draw(st.integers(len(ratio), len(numbers)))
    fewer = kept(labels, ratio, total=total)
    assert len(fewer) == total
    low, high = scales(counts_of(labels, fewer), ratio)
    assert low <= high
    assert set(fewer) <= set(numbers)


@few
@given(sets_and_ratios())
def test_the_rows_depend_on_the_seed_and_not_on_global_generators(drawn):
    labels, ratio = drawn
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = kept(labels, ratio)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert kept(labels, ratio) == first
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


@pytest.mark.parametrize(
    ("available", "ratio", "total", "counts"),
    [
        ((3000, 3000, 3000), (100, 10, 1), None, (3000, 300, 30)),
        ((3000, 3000, 3000), (1, 10, 100), None, (30, 300, 3000)),
        ((3000, 3000, 20), (100, 10, 1), None, (2000, 200, 20)),
        ((3000, 3000, 3000), (100, 10, 1), 1110, (1000, 100, 10)),
        ((3000, 3000, 3000), (1, 0.1, 0.01), 1110, (1000, 100, 10)),
        ((40, 40, 40), (100, 10, 1), None, (40, 4, 1)),
        ((40, 30, 20), (1, 1, 1), None, (20, 20, 20)),
        ((40, 30, 20), (1, 1, 1), 50, (17, 17, 16)),
        ((40, 30), (2, 1), 2, (1, 1)),
        ((1, 5), (1, 1000), None, (1, 5)),
    ],
)
def test_counts(available, ratio, total, counts):
    labels = [c for c, count in enumerate(available) for _ in range(count)]
    assert tuple(counts_of(labels, kept(labels, ratio, total=total))) == counts


def test_other_seeds_draw_other_rows():
    labels = [0, 1] * 200
    first, second = kept(labels, (10, 1), seed=1), kept(labels, (10, 1), seed=2)
    assert len(first) == len(second) == 220
    assert first != second


@pytest.mark.parametrize(
    ("labels", "ratio", "options", "message"),
    [
        ([0, 1, 2], (1, 1), {}, "ratio has 2 numbers for 3 classes"),
        ([0, 1], (1, 1), {"label_names": ["a", "b", "c"]}, "ratio has 2 numbers for 3 classes"),
        ([0, 1], (1, 0), {}, "ratio has 0; every class needs a positive number"),
        ([0, 1], (1, -2), {}, "ratio has -2;"),
        ([0, 1], (1, float("nan")), {}, "ratio has nan;"),
        ([0, 1], (1, float("inf")), {}, "ratio has inf;"),
        ([0.0, 1.5], (1, 1), {}, "regression"),
        ([0, 1], (1, 1), {"label_names": []}, "regression"),
        ([0, 2], (1, 1, 1), {}, "no row has class 1;"),
        ([0, 1], (1, 1, 1), {"label_names": ["a", "b", "c"]}, r"no row has class 2 \('c'\);"),
        ([0, 0, 1, 1], (1, 1), {"total": 5}, r"total is 5; .* from 2 \(one of each class\) to 4"),
        ([0, 0, 1, 1], (1, 1), {"total": 1}, "total is 1;"),
    ],
)
def test_errors_name_the_remedy(labels, ratio, options, message):
    with pytest.raises(BALoraError, match=rf"train\.tsv: .*{message}"):
        kept(labels, ratio, **options)


def test_mnli_at_100_10_1(data_dir):
    path = data_dir / "glue_9k/MNLI/train.json"
    names = ["contradiction", "entailment", "neutral"]
    raw = list(json.loads(path.read_text()).values())
    available = Counter(row["label"] for row in raw)
    assert [available[name] for name in names] == [2958, 3061, 2980]
    rows, found = to_classification_rows(load_table(str(path)), source=path.name)
    assert found == names

    tailed = subsample_to_ratio(rows, (100, 10, 1), seed=42, source=path.name, label_names=found)
    assert np.bincount(tailed["label"]).tolist() == [2958, 296, 30]  # 2958, 295.8, 29.58
    known = {(row["text_a"], row["text_b"], names.index(row["label"])) for row in raw}
    assert set(zip(tailed["text"], tailed["text_pair"], tailed["label"], strict=True)) <= known

    balanced = subsample_to_ratio(rows, (1, 1, 1), seed=42, source=path.name, total=len(tailed))
    assert np.bincount(balanced["label"]).tolist() == [1095, 1095, 1094]
