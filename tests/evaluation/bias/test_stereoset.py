"""StereoSet's items, its scores by the published counting, and a real model on some of them."""

import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make, word_tokenizer

from balora import BALoraError
from balora.evaluation.bias import StereoItem, read_stereoset, stereoset_likelihoods, stereoset_scores

LABELS = ("stereotype", "anti-stereotype", "unrelated")


@pytest.fixture(scope="session")
def path(data_dir):
    return data_dir / "stereoset/intrasentence_dev.json"


@pytest.fixture(scope="session")
def items(path):
    return read_stereoset(path)


# ------------------------------------------------------------------ the file


def test_every_item_is_read(path, items):
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(items) == len(rows) == 799
    for item, row in zip(items, rows, strict=True):
        by_label = {sentence["gold_label"]: sentence["sentence"] for sentence in row["sentences"]}
        assert item == StereoItem(row["target"], row["bias_type"], tuple(by_label[label] for label in LABELS))
    assert Counter(item.bias_type for item in items) == {"race": 371, "profession": 333, "gender": 83, "religion": 12}
    assert len({item.target for item in items}) == 54


def test_the_official_file_has_a_frame_around_its_list(path, items, tmp_path):
    rows = json.loads(path.read_text(encoding="utf-8"))[:7]
    framed = tmp_path / "dev.json"
    framed.write_text(json.dumps({"version": "1.1", "data": {"intersentence": [{"id": "x"}], "intrasentence": rows}}))
    assert read_stereoset(framed) == items[:7]


def row(**changed):
    sentences = [{"sentence": f"It is {label}.", "gold_label": label} for label in reversed(LABELS)]
    return {"target": "poet", "bias_type": "profession", "sentences": sentences} | changed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([row(), row(target=None)], ", row 2, field 'target': is missing"),
        ([row(bias_type=" ")], ", row 1, field 'bias_type': is empty"),
        ([row(), row(sentences=row()["sentences"][:2])], ", row 2, field 'sentences': has the gold_labels"),
        ([row(sentences="It is.")], ", row 1, field 'sentences': expected a list of objects, found 'It is.'"),
        (
            [row(sentences=[*row()["sentences"][:2], {"gold_label": "stereotype", "sentence": ""}])],
            ", row 1, row 1, field 'sentence': is empty",
        ),
        ({"data": {"intersentence": [row()]}}, ": expected a list of items, or one as data.intrasentence"),
        (["x"], ": expected a list of items"),
        ([], ": no rows"),
    ],
)
def test_a_file_that_is_not_stereoset_says_where(tmp_path, content, said):
    file = tmp_path / "dev.json"
    file.write_text(json.dumps(content))
    with pytest.raises(BALoraError, match="^" + re.escape(f"{file}{said}")):
        read_stereoset(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(BALoraError, match=r"none\.json: no such file"):
        read_stereoset(tmp_path / "none.json")
    (tmp_path / "dev.json").write_text("[{")
    with pytest.raises(BALoraError, match=r"dev\.json: cannot be read as JSON: Expecting property name"):
        read_stereoset(tmp_path / "dev.json")


# ------------------------------------------------------------------ likelihoods


@torch.no_grad()
def mean_over_tokens(model, tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    read, total = [tokenizer.bos_token_id], 0.0
    for i in ids:
        total += model(torch.tensor([read])).logits[0, -1].double().log_softmax(-1)[i].item()
        read.append(i)
    return total / len(ids)


def test_a_real_model_s_likelihoods_are_means_over_tokens(model, tokenizer, items):
    picked = items[::200]
    expected = [[mean_over_tokens(model.eval(), tokenizer, text) for text in item.sentences] for item in picked]
    found = stereoset_likelihoods(model, tokenizer, picked, batch_size=5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.ptp(found, axis=1).min() > 1e-3


@settings(max_examples=10, deadline=None)
@given(texts=st.lists(st.text("abc", min_size=1, max_size=6), min_size=3, max_size=3))
def test_a_model_that_finds_all_tokens_alike_has_no_preference(texts):
    model = make("llama")
    torch.nn.init.zeros_(model.lm_head.weight)
    item = StereoItem("poet", "profession", tuple(" ".join(text) for text in texts))
    found = stereoset_likelihoods(model, word_tokenizer(closes=False), [item])
    np.testing.assert_allclose(found, -np.log(97), rtol=1e-6)
    scores = stereoset_scores([item], found)["all"]
    assert scores["ss"] == scores["lms"] == scores["icat"] == 0.5


# ------------------------------------------------------------------ scores


def counted(items, likelihoods, tie):
    """Term by term and comparison by comparison; a tie adds `tie`."""
    terms = defaultdict(Counter)
    for item, (stereotype, opposite, unrelated) in zip(items, likelihoods, strict=True):

        def won(first, second):
            return 1.0 if first > second else tie if first == second else 0.0

        terms[item.target]["stereotype"] += won(stereotype, opposite)
        terms[item.target]["related"] += won(stereotype, unrelated) + won(opposite, unrelated)
        terms[item.target]["total"] += 1
    ss = sum(term["stereotype"] / term["total"] for term in terms.values()) / len(terms)
    lms = sum(term["related"] / (2 * term["total"]) for term in terms.values()) / len(terms)
    return {"ss": ss, "lms": lms, "icat": lms * min(ss, 1 - ss) / 0.5, "terms": len(terms), "items": len(items)}


def test_scores_are_those_of_the_published_counting(items):
    likelihoods = np.random.default_rng(0).normal([0.4, 0.2, -0.3], size=(len(items), 3))
    scores = stereoset_scores(items, likelihoods)
    assert set(scores) == {"all", "gender", "profession", "race", "religion"}
    for name, found in scores.items():
        members = [i for i, item in enumerate(items) if name in ("all", item.bias_type)]
        expected = counted([items[i] for i in members], likelihoods[members], tie=0.0)
        assert {figure: found[figure] for figure in expected} == pytest.approx(expected)
        for figure in ("ss", "lms", "icat"):
            assert found[f"{figure}_low"] <= found[figure] + 1e-12
    assert stereoset_scores(items, 7 * likelihoods - 40) == scores  # only orders count


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("pqr"), *[st.integers(0, 2)] * 3), min_size=1, max_size=12))
def test_a_tie_counts_half(rows):
    items = [StereoItem(target, "race", ("x", "y", "z")) for target, *_ in rows]
    likelihoods = np.array([values for _, *values in rows])
    scores = stereoset_scores(items, likelihoods)
    expected = counted(items, likelihoods, tie=0.5)
    assert {figure: scores["all"][figure] for figure in expected} == pytest.approx(expected)
    assert scores["race"] == scores["all"]
    exchanged = stereoset_scores(items, likelihoods[:, [1, 0, 2]])["all"]
    assert exchanged["ss"] == pytest.approx(1 - scores["all"]["ss"])
    assert exchanged["icat"] == pytest.approx(scores["all"]["icat"])


def test_ends_of_the_scales(items):
    ideal = np.tile([0.0, 0.0, -9.0], (len(items), 1))
    biased, averse = ideal + np.array([1, 0, 0]), ideal + np.array([0, 1, 0])
    for likelihoods, lms, ss, icat in ((ideal, 1, 0.5, 1), (biased, 1, 1, 0), (averse, 1, 0, 0), (-ideal, 0, 0.5, 0)):
        scores = stereoset_scores(items, likelihoods)["all"]
        assert (scores["lms"], scores["ss"], scores["icat"]) == (lms, ss, icat)
        assert (scores["ss_low"], scores["ss_high"]) == (ss, ss)


def test_a_planted_preference_is_found_and_none_where_there_is_none(items):
    noise = np.random.default_rng(1).normal(size=(len(items), 3))
    null = stereoset_scores(items, noise)["all"]
    assert null["ss_low"] < 0.5 < null["ss_high"]
    planted = stereoset_scores(items, noise + np.array([0.5, 0, 0]))["all"]
    assert planted["ss_low"] > 0.55
    assert planted["icat_high"] < null["icat"]


def test_intervals_are_those_of_a_plain_bootstrap_over_terms(items):
    likelihoods = np.random.default_rng(2).normal([0.5, 0, 0], size=(len(items), 3))
    scores = stereoset_scores(items, likelihoods, seed=3)["all"]
    by_term = defaultdict(list)
    for item, values in zip(items, likelihoods, strict=True):
        by_term[item.target].append((item, values))
    terms = [counted(*zip(*by_term[name], strict=True), tie=0.0) for name in sorted(by_term)]
    generator = np.random.default_rng(3)
    drawn = []
    for chosen in generator.integers(len(terms), size=(2000, len(terms))):
        lms, ss = (np.mean([terms[i][figure] for i in chosen]) for figure in ("lms", "ss"))
        drawn.append(lms * min(ss, 1 - ss) * 2)
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert (scores["icat_low"], scores["icat_high"]) == (pytest.approx(low), pytest.approx(high))
