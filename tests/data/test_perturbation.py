"""Perturbed questions: reproducible, unchanged at strength 0, more changes with strength, names kept."""

import difflib
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from balora.data import load_table
from balora.data.perturbation import (
    KINDS,
    ask_to_tell,
    contract_or_expand,
    exchange_which_and_what,
    move_alternatives,
    move_preposition,
    perturb,
)
from balora.data.question_words import SYNONYMS, join_words, names_in, split_words
from balora.errors import BALoraError

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
WORDS = [
    "What",
    "which",
    "film",
    "an",
    "actor's",
    "an author",
    "was",
    "in",
    "1999",
    "New York",
    "“a film”",
    '"the car"',
]
QUESTIONS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from([*WORDS, "both", "and", "or", ",", "?"]), max_size=12).map(" ".join)
)


@pytest.fixture(scope="module")
def questions(data_dir):
    files = ("dev_distractor_500.jsonl", "train_distractor_100.json")
    return [question for name in files for question in load_table(str(data_dir / "hotpotqa" / name))["question"]]


def naive_names(question):
    """Return numbers, capitalised words after the first, and quotations, by an independent rule."""
    words = re.findall(r"\w+", question)
    plain = [word for i, word in enumerate(words) if any(map(str.isdigit, word)) or (i and word[0].isupper())]
    return Counter(plain), re.findall(r'"[^"]*"', question)


# ------------------------------------------------------------------ all kinds


@pytest.mark.parametrize("kind", KINDS)
@given(QUESTIONS, st.integers(), st.floats(0, 1))
def test_strength_0_changes_nothing_and_the_result_depends_on_the_seed(kind, question, seed, strength):
    assert perturb(question, kind, 0, seed) == question
    assert perturb(question, kind, strength, seed) == perturb(question, kind, strength, seed)


@pytest.mark.parametrize("kind", KINDS)
@given(QUESTIONS, st.integers(0, 99), st.floats(0, 1))
def test_names_are_kept_in_any_text(kind, question, seed, strength):
    text = perturb(question, kind, strength, seed)
    assert all(name in text for name in names_in(question))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_kept_in_real_questions(kind, questions):
    for question in questions:
        plain, quoted = naive_names(question)
        for seed, strength in ((0, 0.5), (1, 1.0)):
            text = perturb(question, kind, strength, seed)
            assert plain <= Counter(re.findall(r"\w+", text)), (question, text)
            assert all(quotation in text for quotation in quoted), (question, text)


def edited_share(before, after):
    """Return the inserted and removed words as a share of the words of both texts."""
    one, other = before.split(), after.split()
    same = sum(block.size for block in difflib.SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks())
    return 1 - 2 * same / (len(one) + len(other))


@pytest.mark.parametrize(
    ("kind", "most"), [("synonym", 0.05), ("paraphrase", 0.1), ("word_order", 0.2), ("distractor", 0.4)]
)
def test_the_share_of_changed_words_rises_with_strength(kind, most, questions):
    some = questions[:200]
    shares = [np.mean([edited_share(q, perturb(q, kind, s, 0)) for q in some]) for s in STRENGTHS]
    assert shares[0] == 0
    assert np.all(np.diff(shares) > 0.1 * most)
    assert shares[-1] > most


def changed_places(kind, question, strength):
    """Count the changed words, for kinds that keep the number of words."""
    after = split_words(perturb(question, kind, strength, 3))
    return {i for i, (a, b) in enumerate(zip(split_words(question), after, strict=True)) if a.core != b.core}


def test_strength_is_the_share_of_pairs_exchanged_and_a_higher_one_changes_more_of_the_same(questions):
    everything = [changed_places("word_order", question, 1) for question in questions]
    total = sum(map(len, everything))
    before = [set() for _ in questions]
    for strength in STRENGTHS[1:]:
        changed = [changed_places("word_order", question, strength) for question in questions]
        assert all(one <= other for one, other in zip(before, changed, strict=True))
        deviation = (strength * (1 - strength) / (total / 2)) ** 0.5
        assert sum(map(len, changed)) / total == pytest.approx(strength, abs=4 * deviation + 1e-9)
        before = changed


def test_strength_is_the_share_of_words_replaced_by_synonyms():
    question = "which " + " ".join(["film"] * 2000)
    for strength in STRENGTHS:
        left = perturb(question, "synonym", strength, 0).split().count("film")
        assert 1 - left / 2000 == pytest.approx(strength, abs=0.045)


def test_draws_differ_between_seeds_and_questions(questions):
    for kind in ("word_order", "distractor"):
        texts = {perturb(questions[0], kind, 0.5, seed) for seed in range(20)}
        assert len(texts) > 5
    first = {perturb(question, "distractor", 1, 0).partition(".")[0] for question in questions[:20]}
    assert len(first) > 2


GOLDEN = "Which large city in Ohio is the author of the famous novel Beloved known for?"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("synonym", "Which large municipality in Ohio is the writer of the renowned book Beloved known for?"),
        ("paraphrase", "For what large city in Ohio is the author of the famous novel Beloved known?"),
        ("word_order", "Which large in city Ohio the is author of the famous novel Beloved for known?"),
        ("distractor", f"It was late in the evening. {GOLDEN} It rained all afternoon."),
    ],
)
def test_every_process_perturbs_alike(kind, expected):
    """String hashes differ between processes; draws must not."""
    assert perturb(GOLDEN, kind, 0.6, 11) == expected


@pytest.mark.parametrize(
    ("kind", "strength", "message"),
    [
        ("typos", 0.5, "^kind: 'typos' is unknown; use one of synonym, paraphrase, word_order, distractor$"),
        ("synonym", 1.5, r"^strength: 1\.5 is out of range; use a number from 0 to 1$"),
        ("synonym", float("nan"), "^strength: nan is out of range"),
    ],
)
def test_wrong_settings_are_named(kind, strength, message):
    with pytest.raises(BALoraError, match=message):
        perturb("What is it?", kind, strength, 0)


# ------------------------------------------------------------------ words and names


@given(QUESTIONS)
def test_joined_words_are_the_question(question):
    assert join_words(split_words(question)) == question


@pytest.mark.parametrize(
    ("question", "names"),
    [
        ("In what city is the University of Louisville's team?", ["University of Louisville"]),
        ("Which film, Up or The Lord of the Rings (2001), won?", ["Up", "The Lord of the Rings", "2001"]),
        ("Robert B. Parker wrote what?", ["Robert B. Parker"]),
        (
            "What is the iPhone in 'the story' and “a tale”?",
            ["iPhone", "the story", "a tale", "'the story'", "“a tale”"],
        ),
        ("Who doesn't know Rome's pope's name?", ["Rome"]),
        ("Was it Paris, the capital?", ["Paris"]),
    ],
)
def test_names_by_hand(question, names):
    assert names_in(question) == names


# ------------------------------------------------------------------ kinds


def test_a_synonym_keeps_capital_and_marks_and_its_article_follows():
    assert perturb("Who was an actor, an author?", "synonym", 1, 0) == "Who was a performer, a writer?"
    assert perturb("a film director's car?", "synonym", 1, 0).split()[2] == "director's"
    assert perturb("Former films of Rome?", "synonym", 1, 0) in (
        "Previous movies of Rome?",
        "Previous pictures of Rome?",
    )
    assert perturb("a job", "synonym", 1, 0) in ("an occupation", "a profession")


def test_the_table_of_synonyms_is_clean():
    assert len(SYNONYMS) > 200
    for word, others in SYNONYMS.items():
        assert re.fullmatch(r"[a-z-]+", word)
        assert others
        assert all(re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", other) and other != word for other in others)


def test_exchanged_neighbours_keep_the_place_of_capital_and_marks():
    assert perturb("What was the, in Rome, name?", "word_order", 1, 0) == "Was what the, in Rome, name?"
    assert perturb("who was born first?", "word_order", 1, 0) == "was who first born?"


def test_distractors_surround_the_question(questions):
    for question in questions[:50]:
        text = perturb(question, "distractor", 1, 0)
        before, after = text.split(question)
        assert before.count(".") == after.count(".") == 2


@pytest.mark.parametrize(
    ("rule", "question", "expected"),
    [
        (contract_or_expand, "What is the age?", "What's the age?"),
        (contract_or_expand, "Who didn't go to it, that is?", "Who did not go to it, that's?"),
        (contract_or_expand, 'Who is "What is it"?', 'Who\'s "What is it"?'),
        (exchange_which_and_what, "In which city is it?", "In what city is it?"),
        (exchange_which_and_what, "What film is it?", "Which film is it?"),
        (exchange_which_and_what, "What happened?", "What happened?"),
        (exchange_which_and_what, "Which of them is it?", "Which of them is it?"),
        (move_preposition, "In which city is it located?", "Which city is it located in?"),
        (move_preposition, "Which city is it located in ?", "In which city is it located ?"),
        (move_preposition, "Who was he married to?", "To whom was he married?"),
        (move_preposition, "Who made what he is known for?", "Who made what he is known for?"),
        (move_preposition, "Who was the man that he is named for?", "Who was the man that he is named for?"),
        (move_alternatives, "Who is older, Ann or Bob?", "Between Ann and Bob, who is older?"),
        (move_alternatives, "Who is older, Ann or Bob or Cy?", "Who is older, Ann or Bob or Cy?"),
        (move_alternatives, "Are Ann and Bob both old?", "Are both Ann and Bob old?"),
        (ask_to_tell, "Who is the author of It?", "Tell me who the author of It is."),
        (ask_to_tell, "Who is the man of it known for?", "Tell me, who is the man of it known for?"),
        (ask_to_tell, "In what year was it?", "Tell me, in what year was it?"),
        (ask_to_tell, "This man is who?", "Tell me this: This man is who?"),
        (ask_to_tell, "", ""),
    ],
)
def test_rules_of_paraphrase_by_hand(rule, question, expected):
    assert rule(question) == expected


def test_a_paraphrase_that_would_change_a_name_is_skipped():
    question = 'Which is older, "Truth or Dare" and more?'
    assert '"Truth or Dare"' in perturb(question, "paraphrase", 1, 0)
    assert move_alternatives('Which is older, "Truth or Dare"?') != 'Which is older, "Truth or Dare"?'
    assert '"Truth or Dare"' in perturb('Which is older, "Truth or Dare"?', "paraphrase", 1, 0)


def test_every_rule_applies_to_real_questions(questions):
    for rule in (contract_or_expand, exchange_which_and_what, move_preposition, move_alternatives, ask_to_tell):
        assert sum(rule(question) != question for question in questions) >= 20
