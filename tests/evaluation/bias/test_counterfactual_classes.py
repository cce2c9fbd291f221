"""A classifier's answers to exchanged texts, against one text at a time."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
import transformers as hf
from tiny_models import make
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from balora import BALoraError
from balora.counterfactual import swap_text
from balora.evaluation.bias import class_distances, classifier_bias_score, counterfactual_scores, counterfactual_texts
from balora.evaluation.classification import class_probabilities

PAIRS = [("he", "she"), ("man", "woman")]
TRIPLES = [("christian", "muslim", "jewish")]
TEXTS = ["He sat", "the nurse sat", "a Muslim man", "THE WOMAN and the man , he sat"]


@pytest.fixture(scope="module")
def words() -> hf.PreTrainedTokenizerFast:
    plain = ["the", "a", "sat", "nurse", "and", ",", *(word for group in PAIRS + TRIPLES for word in group)]
    cased = dict.fromkeys(form(word) for word in plain for form in (str.lower, str.capitalize, str.upper))
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", *cased])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>")


@pytest.mark.parametrize("groups", [PAIRS, TRIPLES], ids=["pairs", "triples"])
@pytest.mark.parametrize("batch_size", [1, 32])
def test_distances_are_those_of_one_text_at_a_time(words, groups, batch_size):
    model = make("bert").double()
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    found = class_distances(model, words, TEXTS, groups, batch_size=batch_size)
    for i, text in enumerate(TEXTS):
        about = [swap_text(text, groups, k)[0] for k in range(len(groups[0]))]
        if about[1] == text:
            assert math.isnan(found[i])
            continue
        with torch.no_grad():
            ps = [model(torch.tensor([words(own)["input_ids"]])).logits[0].softmax(-1).tolist() for own in about]
        pairs = list(permutations(ps, 2))
        expected = sum(sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2 for p, q in pairs) / len(pairs)
        assert expected > 1e-4
        assert found[i] == pytest.approx(expected, rel=1e-6)
    scores = counterfactual_scores(found, name="bias_score")
    known = found[~np.isnan(found)]
    assert scores["bias_score"] == pytest.approx(known.mean())
    assert (scores["texts"], scores["left_out"]) == (len(known), 4 - len(known))


def test_for_two_it_is_the_bias_score_of_the_pairs(words):
    model = make("bert")
    pairs = [own for own in counterfactual_texts(TEXTS, PAIRS) if own]
    p, q = (class_probabilities(model, words, side) for side in zip(*pairs, strict=True))
    scores = counterfactual_scores(class_distances(model, words, TEXTS, PAIRS), name="bias_score")
    assert {**scores, "pairs": 3} == pytest.approx(
        {**classifier_bias_score(p, q), "texts": 3, "left_out": 1}, rel=1e-4
    )


def test_texts_come_back_about_every_member(words):
    assert counterfactual_texts(["A Muslim", "a man"], TRIPLES) == [["A Muslim", "A Jewish", "A Christian"], []]


def test_a_classifier_that_cannot_tell_two_words_apart_has_no_distance(words):
    model = make("bert")
    with torch.no_grad():
        embeddings = model.bert.embeddings.word_embeddings.weight
        for text in ("he", "He", "man", "MAN"):
            (one,), (other,) = (words(side)["input_ids"] for side in (text, swap_text(text, PAIRS)[0]))
            embeddings[one] = embeddings[other]
    found = class_distances(model, words, TEXTS, PAIRS)
    assert np.nanmax(found) < 1e-6


def test_without_classes_or_words_there_is_nothing_to_measure(words):
    model = make("bert")
    assert np.isnan(class_distances(model, words, ["the nurse"], PAIRS)).all()
    model.config.num_labels = 1
    with pytest.raises(BALoraError, match="it has a single output"):
        class_distances(model, words, TEXTS, PAIRS)
