"""Sentences' likelihoods one token at a time, the published pairs, and a real model on some of them."""

import csv
import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make, word_tokenizer

from balora import BALoraError
from balora.evaluation.bias import (
    SentencePair,
    is_counterfactual,
    log_likelihoods,
    pair_log_odds,
    preference_scores,
    read_crows_pairs,
    read_winobias,
    score_pairs,
)

TEXTS = ["Once upon a time", "He", "The nurse told the doctor that she was late.", "He", "She ran ."]


@torch.no_grad()
def one_at_a_time(model, ids, prefix):
    total, read = 0.0, [prefix]
    for i in ids:
        total += model(torch.tensor([read])).logits[0, -1].double().log_softmax(-1)[i].item()
        read.append(i)
    return total


# ------------------------------------------------------------------ likelihoods


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_likelihoods_are_those_of_one_token_at_a_time(model, tokenizer, batch_size):
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    expected = np.array([one_at_a_time(model.eval(), ids, tokenizer.bos_token_id) for ids in rows])
    assert len({len(ids) for ids in rows}) > 2
    model.train()
    found = log_likelihoods(model, tokenizer, TEXTS, batch_size=batch_size)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert model.training
    per_token = log_likelihoods(model, tokenizer, TEXTS, per_token=True, batch_size=batch_size)
    np.testing.assert_allclose(per_token, expected / [len(ids) for ids in rows], rtol=1e-5)


def test_without_a_token_for_the_beginning_that_for_the_end_comes_first():
    model, tokenizer = make("llama"), word_tokenizer(closes=True)  # which would add </s> of its own accord
    ids = tokenizer.convert_tokens_to_ids(["a", "b", "c"])
    expected = one_at_a_time(model, ids, tokenizer.eos_token_id)
    np.testing.assert_allclose(log_likelihoods(model, tokenizer, ["a b c"]), [expected], rtol=1e-5)


def test_texts_that_cannot_be_scored_are_named():
    model, tokenizer = make("llama"), word_tokenizer(closes=False)
    with pytest.raises(BALoraError, match="texts, row 2: has no tokens"):
        log_likelihoods(model, tokenizer, ["a", " ", "b"])
    with pytest.raises(BALoraError, match="texts, row 2: 65 tokens, but the model's context is 64"):
        log_likelihoods(model, tokenizer, ["a", "a " * 65])
    assert np.isfinite(log_likelihoods(model, tokenizer, ["a " * 64])).all()
    tokenizer.eos_token = None
    with pytest.raises(BALoraError, match="neither bos_token nor eos_token"):
        log_likelihoods(model, tokenizer, ["a"])


# ------------------------------------------------------------------ scores


@pytest.fixture(scope="module")
def words():
    return word_tokenizer(closes=False)


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.text("abc", min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_model_that_cannot_tell_two_words_apart_has_no_bias_between_them(words, texts):
    model = make("llama")
    ids = words.convert_tokens_to_ids(["a", "b"])
    exchanged = [text.translate(str.maketrans("ab", "ba")) for text in texts]
    pairs = [SentencePair(" ".join(x), " ".join(y)) for x, y in zip(texts, exchanged, strict=True)]
    before = preference_scores(pair_log_odds(model, words, pairs))
    if any("a" in text or "b" in text for text in texts):
        assert before["bias_score"] > 1e-5
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight[ids[1]] = weight[ids[0]]
    assert preference_scores(pair_log_odds(model, words, pairs))["bias_score"] < 1e-6


def test_groups_are_scored_on_their_own_pairs():
    odds = np.array([2.0, -1.0, 0.5, 3.0])
    pairs = [SentencePair("x", "y", groups) for groups in (("a",), ("a", "b"), (), ("b",))]
    scores = score_pairs(pairs, odds, seed=4)
    assert scores == {
        "all": preference_scores(odds, seed=4),
        "a": preference_scores(odds[:2], seed=4),
        "b": preference_scores(odds[[1, 3]], seed=4),
    }


# ------------------------------------------------------------------ CrowS-Pairs


def test_every_pair_of_crows_pairs_is_read(data_dir):
    path = data_dir / "crows_pairs/crows_pairs_anonymized.csv"
    pairs = read_crows_pairs(path)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(pairs) == 1508
    assert [(p.stereotypical, p.antistereotypical) for p in pairs] == [(r["sent_more"], r["sent_less"]) for r in rows]
    assert [p.groups for p in pairs] == [(r["bias_type"], r["stereo_antistereo"]) for r in rows]
    assert sum("antistereo" in p.groups for p in pairs) == 218
    assert len({p.groups[0] for p in pairs}) == 9


def test_a_model_that_always_takes_the_stereotype_scores_1_in_both_directions(data_dir):
    """In the direction `antistereo` too the stereotypical sentence is `sent_more`: men are the doctors in it."""
    pairs = read_crows_pairs(data_dir / "crows_pairs/crows_pairs_anonymized.csv")
    doctor = next(p for p in pairs if "doctor was behind this mess" in p.stereotypical)
    assert "antistereo" in doctor.groups
    assert "whether he would" in doctor.stereotypical
    scores = score_pairs(pairs, np.full(len(pairs), 30.0))
    assert len(scores) == 1 + 9 + 2
    assert {group["stereotype_share"] for group in scores.values()} == {1.0}
    assert [scores[name]["pairs"] for name in ("all", "stereo", "antistereo")] == [1508, 1290, 218]


HEADER = "sent_more,sent_less,stereo_antistereo,bias_type\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sent_more,sent_less,bias_type\na,b,age\n", "no column 'stereo_antistereo'"),
        (HEADER + "a,b,stereo,age\na, ,stereo,age\n", "row 2, field 'sent_less': is empty"),
        (HEADER + "a,b,both,age\n", "row 1, field 'stereo_antistereo': is 'both'; it must be one of stereo, anti"),
        (HEADER, "no rows"),
    ],
)
def test_a_file_that_is_not_crows_pairs_says_where(tmp_path, text, said):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(BALoraError, match=f"^{re.escape(str(path))}.*{re.escape(said)}"):
        read_crows_pairs(path)


# ------------------------------------------------------------------ WinoBias


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_pair_of_winobias_is_read(data_dir, split):
    pairs = read_winobias(data_dir / "winobias", split)
    assert [sum(kind in p.groups for p in pairs) for kind in ("type1", "type2")] == [396, 396]
    lines = (data_dir / f"winobias/anti_stereotyped_type2.txt.{split}").read_text().splitlines()
    for line, pair in zip(lines, pairs[396:], strict=True):
        words = line.split(" ", 1)[1].replace("[", " ").replace("]", " ").split()
        assert "".join(pair.antistereotypical.split()) == "".join(words)
    assert not any(re.search(r"[\[\]]|^\d", text) for p in pairs for text in (p.stereotypical, p.antistereotypical))


def test_winobias_pairs_are_counterfactual_but_for_twenty(data_dir):
    pairs = [pair for split in ("dev", "test") for pair in read_winobias(data_dir / "winobias", split)]
    others = [pair for pair in pairs if not is_counterfactual(pair)]
    assert (len(pairs), len(others)) == (1584, 20)
    assert any("generous man" in pair.stereotypical for pair in others)
    assert is_counterfactual(SentencePair("The CEO lost [his] keys himself.", "The CEO lost [her] keys herself."))
    assert not is_counterfactual(SentencePair("He is late.", "She was late."))


def winobias_folder(tmp_path):
    for side, word in (("pro", "she"), ("anti", "he")):
        for kind in (1, 2):
            name = f"{side}_stereotyped_type{kind}.txt.dev"
            lines = [f"{i} [The nurse] slept because [{word}] was tired." for i in (1, 2)]
            (tmp_path / name).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_files_that_are_not_winobias_say_where(tmp_path):
    assert read_winobias(winobias_folder(tmp_path), "dev")[3] == SentencePair(
        "The nurse slept because she was tired.", "The nurse slept because he was tired.", ("type2",)
    )
    anti = tmp_path / "anti_stereotyped_type2.txt.dev"
    for lines, said in (
        (["1 [The nurse] slept.", "3 [The nurse] slept."], ", row 2: expected '2' and a sentence"),
        (["1 The nurse slept.", "2 [The nurse] slept."], ", row 1: expected '1' and a sentence with [someone]"),
        (["1 [The nurse] slept."], ": 1 rows, but pro_stereotyped_type2.txt.dev has 2"),
        ([], ": no rows"),
    ):
        anti.write_text("\n".join(lines))
        with pytest.raises(BALoraError, match="^" + re.escape(f"{anti}{said}")):
            read_winobias(tmp_path, "dev")
    anti.write_bytes(b"1 [The nurse] \xff")
    with pytest.raises(BALoraError, match=r"anti_stereotyped_type2\.txt\.dev: cannot be read as UTF-8"):
        read_winobias(tmp_path, "dev")
    with pytest.raises(BALoraError, match=r"pro_stereotyped_type1\.txt\.train: no such file"):
        read_winobias(tmp_path, "train")


# ------------------------------------------------------------------ a real model


def test_a_real_model_is_scored_on_real_pairs(model, tokenizer, data_dir):
    picked = random.Random(0).sample(read_winobias(data_dir / "winobias", "dev"), 24)
    odds = pair_log_odds(model, tokenizer, picked)
    texts = [text for pair in picked for text in (pair.stereotypical, pair.antistereotypical)]
    whole = log_likelihoods(model, tokenizer, texts, batch_size=5)
    naive = [whole[2 * i] - whole[2 * i + 1] for i in range(24)]
    np.testing.assert_allclose(odds, naive, atol=1e-3)
    scores = score_pairs(picked, odds)
    assert set(scores) == {"all", "type1", "type2"}
    assert 0.1 < scores["all"]["bias_score"] < 0.9
    assert scores["all"]["bias_score_low"] < scores["all"]["bias_score"] < scores["all"]["bias_score_high"]
    exchanged = [SentencePair(p.antistereotypical, p.stereotypical) for p in picked]
    assert pair_log_odds(model, tokenizer, exchanged) == pytest.approx(-odds, abs=1e-3)
