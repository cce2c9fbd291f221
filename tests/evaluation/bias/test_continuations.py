"""Prompts in BOLD's schema, samples against the model's own distribution, and scores against plain loops."""

import json
import re
from collections import Counter

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

from balora import BALoraError
from balora.counterfactual import WORD_LISTS, swap_text
from balora.evaluation.bias import Prompt, continuation_scores, read_bold, sample_continuations
from balora.evaluation.bias.templates import CONTINUATIONS

PUBLISHED = {
    "American_actors": {"A_B": ["A B is an American actor who ", "A B was born in "], "C_D": ["C D is an actor "]},
    "American_actresses": {"E_F": ["E F is an American actress "], "G_H": ["G H played "]},
}


# ---------------------------------------------------------------------- prompts


def test_files_as_published_are_read(tmp_path):
    (tmp_path / "gender_prompt.json").write_text(json.dumps(PUBLISHED))
    (tmp_path / "race_prompt.json").write_text(json.dumps({"X": {"x": ["X is "]}, "Y": {"y": ["Y is "]}}))
    (tmp_path / "gender_wiki.json").write_text("not read")
    prompts = read_bold(tmp_path / "gender_prompt.json")
    assert prompts[1] == Prompt("gender", "American_actors", "A_B", "A B was born in")
    assert Counter(prompt.group for prompt in prompts) == {"American_actors": 3, "American_actresses": 2}
    assert read_bold(tmp_path) == prompts + read_bold(tmp_path / "race_prompt.json")
    assert [p.text for p in read_bold(tmp_path, max_samples=1) if p.domain == "gender"] == [
        "A B is an American actor who",
        "E F is an American actress",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "two groups or more"),
        ('{"a": {"x": ["y"]}}', "two groups or more"),
        ("{", "cannot be read as a JSON file"),
        ('{"a": ["x"], "b": {}}', "'a': expected an object of lists"),
        ('{"a": {"x": "y"}, "b": {}}', "'a': expected an object of lists"),
        ('{"a": {"x": ["y"]}, "b": {}}', "'b': expected prompts"),
        ('{"a": {"x": ["y", 1]}, "b": {"x": ["y"]}}', "'a': expected prompts"),
        ('{"a": {"x": ["y"]}, "b": {"x": [" "]}}', "'b': expected prompts"),
    ],
)
def test_files_of_another_form_say_where(tmp_path, content, said):
    path = tmp_path / "gender_prompt.json"
    path.write_text(content)
    with pytest.raises(BALoraError, match=f"^{re.escape(str(path))}.*{said}"):
        read_bold(path)


def test_files_that_are_not_there_say_so(tmp_path):
    with pytest.raises(BALoraError, match="holds no file that ends in _prompt"):
        read_bold(tmp_path)
    with pytest.raises(BALoraError, match="cannot be read"):
        read_bold(tmp_path / "gender_prompt.json")


def test_our_prompts_ask_the_same_of_every_group():
    prompts = read_bold(CONTINUATIONS)
    assert {prompt.domain for prompt in prompts} == {"gender", "nationality", "religion"}
    by_group = {}
    for prompt in prompts:
        by_group.setdefault((prompt.domain, prompt.group), {})[prompt.name] = prompt.text
    for (domain, _), frames in by_group.items():
        assert len(frames) == 10
        first = next(own for (other, _), own in by_group.items() if other == domain)
        words = WORD_LISTS[domain]
        for name, text in frames.items():
            orbit = {swap_text(first[name], words, k)[0].replace(" an ", " a ") for k in range(len(words[0]))}
            assert text.replace(" an ", " a ") in orbit
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 90


# ---------------------------------------------------------------------- samples


@pytest.fixture(scope="module")
def words() -> hf.PreTrainedTokenizerFast:
    """As many words as the tiny models have tokens."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, 97))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def spread() -> hf.PreTrainedModel:
    model = make("llama")
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.lm_head.weight.mul_(15)
    return model


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.8)])
def test_samples_follow_the_model_s_distribution(words, temperature, top_p):
    model = spread()
    model.train()
    (written,) = sample_continuations(
        model, words, ["w5 w9 w20"], per_prompt=4000, max_new_tokens=1, temperature=temperature, top_p=top_p,
        batch_size=1000,
    )  # fmt: skip
    assert model.training
    with torch.no_grad():
        logits = model.eval()(torch.tensor([words("w5 w9 w20")["input_ids"]])).logits[0, -1] / temperature
    p = logits.double().softmax(-1).tolist()
    kept, reached = {}, 0.0
    for token in sorted(range(97), key=lambda i: -p[i]):
        if reached >= top_p:
            break
        kept[token], reached = p[token], reached + p[token]
    names = words.convert_ids_to_tokens(list(range(97)))
    counts = Counter(written)
    special = ("<s>", "</s>")
    expected = {"" if names[i] in special else names[i]: 0.0 for i in kept}
    for i, value in kept.items():
        expected["" if names[i] in special else names[i]] += value / reached
    assert set(counts) <= set(expected)
    assert len(expected) >= 5
    distance = sum(abs(counts[word] / 4000 - value) for word, value in expected.items()) / 2
    assert distance < 0.06


def test_seeds_decide_and_the_global_generator_plays_no_part(words):
    model, prompts = spread(), ["w5 w9", "w7", "w8 w4"]
    how = {"per_prompt": 3, "max_new_tokens": 6, "batch_size": 4}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = sample_continuations(model, words, prompts, seed=1, **how)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert sample_continuations(model, words, prompts, seed=1, **how) == first
    assert sample_continuations(model, words, prompts, seed=2, **how) != first
    assert [len(own) for own in first] == [3, 3, 3]
    assert len({text for own in first for text in own}) == 9
    assert max(len(text.split()) for own in first for text in own) == 6


def test_texts_belong_to_their_prompts_and_end_where_the_model_ends_them(words):
    """A head that says w10 after w5, w11 after w6, and then ends the text."""
    model = spread()
    prompts = {"w6 w5": "w10", "w6": "w11", "w5": "w10", "w5 w6": "w11"}
    with torch.no_grad():
        rows = [words(text)["input_ids"] for text in [*prompts, *(f"{a} {b}" for a, b in prompts.items())]]
        hidden = torch.stack([model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in rows]).double()
        wanted = [*(words.convert_tokens_to_ids(list(prompts.values()))), *[2] * len(prompts)]
        targets = torch.full((len(rows), 97), 0.0, dtype=torch.double)
        targets[range(len(rows)), wanted] = 60.0
        model.lm_head.weight.copy_((torch.linalg.pinv(hidden) @ targets).T)
    model.generation_config.eos_token_id = 2
    found = sample_continuations(model, words, list(prompts), per_prompt=3, max_new_tokens=4, batch_size=2)
    assert found == [[text] * 3 for text in prompts.values()]


def test_a_real_model_goes_on(model, tokenizer):
    prompts = [prompt.text for prompt in read_bold(CONTINUATIONS, max_samples=1)]
    found = sample_continuations(model, tokenizer, prompts, per_prompt=2, max_new_tokens=8)
    assert len(found) == 9
    assert all(text and prompt not in text for prompt, own in zip(prompts, found, strict=True) for text in own)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"per_prompt": 0}, "per_prompt: 0; use at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0; use at least 1"),
        ({"temperature": 0.0}, "temperature: 0.0; use more than 0"),
        ({"top_p": 0.0}, "top_p: 0.0; use more than 0"),
        ({"top_p": 1.5}, "top_p: 1.5; use more than 0"),
        ({"max_new_tokens": 63}, "prompt 1: 2 tokens and max_new_tokens 63 are beyond the model's context of 64"),
    ],
)
def test_what_cannot_be_sampled_is_refused(words, settings, said):
    with pytest.raises(BALoraError, match=said):
        sample_continuations(spread(), words, ["w5 w6"], **settings)


# ---------------------------------------------------------------------- scores


def prompts_of(*groups: tuple[str, str]) -> list[Prompt]:
    return [Prompt(domain, group, str(i), "x") for i, (domain, group) in enumerate(groups)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(1, 4), st.integers(0, 2**31))
def test_scores_are_those_of_a_plain_loop(groups, each, seed):
    groups = ["a", "b", *groups]
    prompts = prompts_of(*(("one", group) for group in groups), ("two", "x"), ("two", "y"))
    scores = np.random.default_rng(seed).normal(size=(len(prompts), each))
    found = continuation_scores(prompts, scores)
    means = {}
    for group in sorted(set(groups)):
        own = [value for p, row in zip(prompts, scores.tolist(), strict=True) for value in row if p.group == group]
        means[group] = sum(own) / len(own)
        entry = found["one"]["groups"][group]
        assert entry["score"] == pytest.approx(means[group])
        assert entry["prompts"] == groups.count(group)
        assert entry["score_low"] <= entry["score"] + 1e-9
        assert entry["score_high"] >= entry["score"] - 1e-9
    assert found["one"]["gap"] == pytest.approx(max(means.values()) - min(means.values()))
    assert means[found["one"]["highest"]] == max(means.values())
    assert means[found["one"]["lowest"]] == min(means.values())
    assert found["two"]["gap"] == pytest.approx(abs(scores[-1].mean() - scores[-2].mean()))
    assert found["two"]["gap_p"] == 1.0  # two prompts can only change places


def test_intervals_are_over_prompts_and_not_over_texts():
    """Texts of one prompt are rated alike here: more of them tell nothing more."""
    prompts = prompts_of(*[("d", "a")] * 20, *[("d", "b")] * 20)
    one = np.random.default_rng(0).normal(size=(40, 1))
    few, many = (continuation_scores(prompts, np.repeat(one, each, 1))["d"] for each in (1, 50))
    for group in "ab":
        for end in ("score_low", "score_high"):
            assert many["groups"][group][end] == pytest.approx(few["groups"][group][end])
    assert many["gap_p"] == few["gap_p"]


def test_a_planted_gap_is_found_and_no_gap_is_not():
    prompts = prompts_of(*[("d", group) for group in "abc" for _ in range(30)])
    noise = np.random.default_rng(1).normal(size=(90, 5))
    planted = noise + np.repeat([0.0, 0.0, 1.0], 30)[:, None]
    found = continuation_scores(prompts, planted)["d"]
    assert found["highest"] == "c"
    assert found["groups"]["c"]["score_low"] > found["groups"]["a"]["score_high"]
    assert found["gap_p"] == pytest.approx(1 / 2001)
    assert continuation_scores(prompts, noise)["d"]["gap_p"] > 0.05


def test_where_nothing_leans_few_gaps_look_like_one():
    """Of studies without any difference, about 5 % have a gap_p of 0.05 or less."""
    prompts = prompts_of(*[("d", group) for group in "abcd" for _ in range(5)])
    generator = np.random.default_rng(2)
    small = sum(continuation_scores(prompts, generator.normal(size=(20, 1)))["d"]["gap_p"] <= 0.05 for _ in range(40))
    assert small <= 6
