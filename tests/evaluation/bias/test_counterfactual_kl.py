"""Divergence and lean against loops that read one text and one position at a time, planted skew, and none at all."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn

from balora import BALoraError
from balora.counterfactual import WORD_LISTS, Swaps, read_word_groups
from balora.evaluation.bias import (
    Lean,
    continuation_lean,
    counterfactual_divergences,
    counterfactual_scores,
    lean_scores,
)
from balora.evaluation.bias.templates import OCCUPATIONS, PEOPLE, read_texts

PAIRS = [("he", "she"), ("man", "woman")]
TRIPLES = [("christian", "muslim", "jewish"), ("bible", "quran", "torah")]
PLAIN = ["the", "nurse", "pilot", "said", "that", "sat"]
WORDS = [*PLAIN, *(word for group in PAIRS + TRIPLES for word in group)]


@pytest.fixture(scope="module")
def words() -> hf.PreTrainedTokenizerFast:
    """A token a word, fewer than the tiny models have, and `<s>` to begin with."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<s>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>")


def spread(name: str) -> nn.Module:
    """A tiny model in double precision whose predictions differ from token to token as a trained one's do."""
    model = make(name).double()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    return model


def exchanged(text: str, groups, steps: int) -> str:
    other = {word: group[(i + steps) % len(group)] for group in groups for i, word in enumerate(group)}
    return " ".join(other.get(word, word) for word in text.split())


@torch.no_grad()
def naive_q(model, tokenizer, text: str, groups, steps: int, words_read: int) -> list[float]:
    """Q of the next token after so many words: of the exchanged text, with each token's probability its partner's."""
    ids = tokenizer("<s> " + exchanged(" ".join(text.split()[:words_read]), groups, steps))["input_ids"]
    p = model(torch.tensor([ids])).logits[0, -1].softmax(-1).tolist()
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ids = [tokenizer.convert_tokens_to_ids(exchanged(word, groups, steps)) for word in vocabulary]
    return [p[i] for i in ids] + p[len(ids) :]


def naive_divergence(model, tokenizer, text, groups, positions) -> float:
    total = 0.0
    for read in positions:
        qs = [naive_q(model, tokenizer, text, groups, steps, read) for steps in range(len(groups[0]))]
        pairs = [(a, b) for a in qs for b in qs if a is not b]
        total += sum(sum(x * math.log(x / y) for x, y in zip(a, b, strict=True)) for a, b in pairs) / len(pairs)
    return total / len(positions)


@pytest.mark.parametrize("name", ["llama", "gpt2", "cohere"])
@pytest.mark.parametrize("groups", [PAIRS, TRIPLES], ids=["pairs", "triples"])
def test_divergence_is_that_of_one_position_at_a_time(words, name, groups):
    model = spread(name)
    texts = [
        "the man said that he sat",
        "the nurse sat",
        "jewish",
        "torah bible",
        "she sat the woman",
        "muslim the he",
    ]
    swaps = Swaps(groups, words)
    found = counterfactual_divergences(model, words, texts, swaps, batch_size=2)
    last = counterfactual_divergences(model, words, texts, swaps, batch_size=4, last_only=True)
    for i, text in enumerate(texts):
        if exchanged(text, groups, 1) == text:
            assert math.isnan(found[i])
            assert math.isnan(last[i])
            continue
        length = len(text.split())
        expected = naive_divergence(model, words, text, groups, range(length + 1))
        assert expected > 1e-3
        assert found[i] == pytest.approx(expected, rel=1e-9)
        assert last[i] == pytest.approx(naive_divergence(model, words, text, groups, [length]), rel=1e-9)
    scores = counterfactual_scores(found)
    known = found[~np.isnan(found)]
    assert scores["divergence"] == pytest.approx(known.mean())
    assert scores["divergence_low"] < scores["divergence"] < scores["divergence_high"]
    assert (scores["texts"], scores["left_out"]) == (len(known), 6 - len(known))


@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=4))
def test_it_is_the_same_whomever_a_text_is_about(words, texts):
    model = spread("llama")
    for groups in (PAIRS, TRIPLES):
        swaps = Swaps(groups, words)
        about = [[exchanged(" ".join(text), groups, k) for text in texts] for k in range(len(groups[0]))]
        found = [counterfactual_divergences(model, words, own, swaps) for own in about]
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], rtol=1e-9)
        known = found[0][~np.isnan(found[0])]
        assert (known > 0).all()


class Averaged(nn.Module):
    """A model without skew: another one, averaged over the exchange."""

    def __init__(self, model, swaps):
        super().__init__()
        self.model, self.config = model, model.config
        every = torch.arange(model.config.vocab_size)
        self.moves = [every.clone() for _ in range(swaps.size)]
        for steps in range(1, swaps.size):
            own = swaps.partners(steps)
            self.moves[steps][: len(own)] = own

    def forward(self, input_ids, attention_mask):
        p = [self.model(move[input_ids], attention_mask=attention_mask).logits.softmax(-1) for move in self.moves]
        mean = sum(own[..., move] for own, move in zip(p, self.moves, strict=True)) / len(p)
        return SimpleNamespace(logits=mean.log())


@pytest.mark.parametrize("groups", [PAIRS, TRIPLES], ids=["pairs", "triples"])
def test_an_averaged_model_has_no_skew_and_still_tells_a_man_from_a_woman(words, groups):
    base, swaps = spread("llama"), Swaps(groups, words)
    fair = Averaged(base, swaps)
    texts = [f"the {groups[1][0]} said that", f"{groups[0][1]} sat", f"the nurse said {groups[0][-1]} that"]
    prompts = ["the nurse said that", "the pilot sat"]
    assert counterfactual_divergences(base, words, texts, swaps).min() > 1e-3
    assert np.abs(counterfactual_divergences(fair, words, texts, swaps)).max() < 1e-12
    assert continuation_lean(base, words, prompts, swaps).distances.min() > 1e-4
    lean = continuation_lean(fair, words, prompts, swaps)
    assert lean.distances.max() < 1e-12
    assert np.abs(lean.log_odds).max() < 1e-12
    ids = torch.tensor([words(texts[0])["input_ids"]])
    p = fair(ids, torch.ones_like(ids)).logits[0, -1]
    a, b = words.convert_tokens_to_ids(list(groups[0][:2]))
    assert (p[a] - p[b]).abs() > 1e-3  # who was named counts, as it should


class Table(nn.Module):
    """A model that looks at the last token alone: logits `(V, V)`."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.config = hf.LlamaConfig(vocab_size=len(table), max_position_embeddings=64)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.table[input_ids])


def test_a_planted_preference_is_found_in_size_and_direction(words):
    swaps = Swaps(PAIRS, words)
    table = torch.zeros(len(words), len(words), dtype=torch.double)
    he, that = words.convert_tokens_to_ids(["he", "that"])
    table[that, he] += 1.5
    lean = continuation_lean(Table(table), words, ["the nurse said that", "that pilot sat"], swaps)
    size = len(words) - 1 + math.exp(1.5)
    np.testing.assert_allclose(lean.distances, [(math.exp(1.5) - 1) / size, 0], atol=1e-12)
    np.testing.assert_allclose(np.exp(lean.log_masses), [[(math.exp(1.5) + 1) / size, 2 / size], [2 / len(words)] * 2])
    np.testing.assert_allclose(lean.log_odds[:, 0], [math.log((math.exp(1.5) + 1) / 2), 0], atol=1e-12)
    np.testing.assert_allclose(lean.log_odds[:, 1], -lean.log_odds[:, 0])
    divergences = counterfactual_divergences(Table(table), words, ["he said that", "he sat", "that"], swaps)
    one = 1.5 * (math.exp(1.5) - 1) / size  # KL either way at the one position after "that"
    np.testing.assert_allclose(divergences, [one / 4, 0, np.nan], atol=1e-12)


def test_preferences_that_point_both_ways_cancel_in_log_odds_alone(words):
    swaps = Swaps(PAIRS, words)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(len(words), len(words), generator=generator, dtype=torch.double)
    prompts = [f"the {word}" for word in WORDS]
    both = lean_scores(continuation_lean(Table(table), words, prompts, swaps), PAIRS[0])
    assert both["log_odds"]["he"]["log_odds_low"] < 0 < both["log_odds"]["he"]["log_odds_high"]
    assert both["lean_low"] > 0.02
    table[:, words.convert_tokens_to_ids("he")] += 2.0
    skewed = lean_scores(continuation_lean(Table(table), words, prompts, swaps), PAIRS[0])
    assert skewed["log_odds"]["he"]["log_odds_low"] > 0.3
    assert skewed["log_odds"]["she"]["log_odds_high"] < -0.3
    assert both["lean"] < skewed["lean"] <= skewed["mass"] < 1
    assert skewed["prompts"] == len(prompts)


@pytest.mark.parametrize("groups", [PAIRS, TRIPLES], ids=["pairs", "triples"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_lean_is_that_of_one_prompt_at_a_time(words, groups, batch_size):
    model = spread("llama")
    prompts = ["the nurse said that", "sat", "the pilot", "the muslim man that sat"]
    size = len(groups[0])
    model.train()
    lean = continuation_lean(model, words, prompts, Swaps(groups, words), batch_size=batch_size)
    assert model.training
    model.eval()
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            p = model(torch.tensor([words("<s> " + prompt)["input_ids"]])).logits[0, -1].softmax(-1).tolist()
        named = {word: p[words.convert_tokens_to_ids(word)] for group in groups for word in group}
        gaps = [
            abs(named[word] - named[group[(place + steps) % size]])
            for steps in range(1, size)
            for group in groups
            for place, word in enumerate(group)
        ]
        assert lean.distances[i] == pytest.approx(sum(gaps) / 2 / (size - 1), rel=1e-9)
        log_masses = [math.log(sum(named[group[place]] for group in groups)) for place in range(size)]
        assert lean.log_masses[i] == pytest.approx(log_masses, rel=1e-9)
        for place in range(size):
            others = [value for other, value in enumerate(log_masses) if other != place]
            assert lean.log_odds[i, place] == pytest.approx(log_masses[place] - sum(others) / len(others), abs=1e-9)


def test_scores_name_the_members_they_are_of():
    lean = Lean(np.array([0.1, 0.2]), np.log([[0.2, 0.1], [0.4, 0.1]]))
    scores = lean_scores(lean, ("he", "she"))
    assert scores["lean"] == pytest.approx(0.15)
    assert scores["mass"] == pytest.approx(0.4)
    assert scores["log_odds"]["he"]["log_odds"] == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert scores["log_odds"]["she"]["log_odds"] == pytest.approx(-(math.log(2) + math.log(4)) / 2)


# ---------------------------------------------------------------------- a real model


@torch.no_grad()
def test_words_of_several_tokens_in_a_real_model(model, tokenizer):
    """Each prefix is exchanged and read anew, but those that end within a word."""
    swaps = Swaps(WORD_LISTS["gender"], tokenizer)
    model.double().eval()
    texts = ["The policeman gave his mother a ball. She said", "Lily and her brother saw", "A ball."]
    found = counterfactual_divergences(model, tokenizer, texts, swaps)
    assert math.isnan(found[2])
    partners = swaps.partners(1)
    for text, value in zip(texts[:2], found, strict=False):
        ids = tokenizer(text)["input_ids"]
        assert len(swaps.swapped(ids, 1).ids) != len(ids) or text.startswith("Lily")
        distances = []
        for end, place in enumerate(swaps.swapped(ids, 1).places, start=1):
            if place < 0:
                continue
            p, q = (
                model(torch.tensor([read])).logits[0, -1].softmax(-1)
                for read in (ids[:end], swaps.swapped(ids[:end], 1).ids)
            )
            q = q[partners]
            distances.append(((p - q) * (p / q).log()).sum().item() / 2)
        assert len(distances) < len(ids) or text.startswith("Lily")
        assert value == pytest.approx(sum(distances) / len(distances), rel=1e-9)


def test_our_texts_on_a_real_model(model, tokenizer):
    groups = read_word_groups("gender")
    swaps = Swaps(groups, tokenizer)
    texts, prompts = read_texts(PEOPLE), read_texts(OCCUPATIONS)
    assert len(set(texts)) == len(texts) >= 30
    assert len(set(prompts)) == len(prompts) >= 40
    named = {word for group in groups for word in group}
    assert not any(named & set(prompt.lower().split()) for prompt in prompts)
    scores = counterfactual_scores(counterfactual_divergences(model, tokenizer, texts, swaps))
    assert scores["left_out"] == 0
    assert 0 < scores["divergence_low"] < scores["divergence_high"] < 1
    lean = lean_scores(continuation_lean(model, tokenizer, prompts, swaps), groups[0])
    assert 0 < lean["lean_low"] < lean["lean_high"] < lean["mass"] < 1


# ---------------------------------------------------------------------- mistakes


def test_texts_that_cannot_be_measured_are_named(words):
    model, swaps = spread("llama"), Swaps(PAIRS, words)
    with pytest.raises(BALoraError, match="texts, row 2: has no tokens"):
        counterfactual_divergences(model, words, ["he", " "], swaps)
    with pytest.raises(BALoraError, match="texts, row 2: 65 tokens, but the model's context is 64"):
        counterfactual_divergences(model, words, ["he", "he " * 64], swaps)
    with pytest.raises(BALoraError, match="prompts, row 1: has no tokens"):
        continuation_lean(model, words, [""], swaps)
    with pytest.raises(BALoraError, match="texts: none has a word of the list"):
        counterfactual_scores(counterfactual_divergences(model, words, ["the nurse"], swaps))


def test_a_lean_takes_words_of_one_token(model, tokenizer):
    with pytest.raises(BALoraError, match=r"writes no group of them as single tokens.*christian/muslim/jewish"):
        continuation_lean(model, tokenizer, ["The man is"], Swaps(WORD_LISTS["religion"], tokenizer))
