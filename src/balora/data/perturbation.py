"""Questions said otherwise, more so with rising strength, that have the same answer: does a model follow meaning?

Four kinds, without any model or corpus: words for words (`synonym`), another form (`paraphrase`), neighbours exchanged
(`word_order`), and remarks around the question that do not matter (`distractor`).
"""

import random

from balora.data.paraphrase import RULES
from balora.data.question_words import Word, join_words, names_in, recased, split_words
from balora.data.synonyms import SYNONYMS
from balora.errors import BALoraError

#: Two places before a question and two after it, each with remarks of its own.
BEFORE = (
    (
        "A friend asked me this yesterday.",
        "This came up over lunch.",
        "I have wondered about this for a while.",
        "We heard this one at a quiz.",
    ),
    (
        "The weather was fine that day.",
        "We were waiting for the bus.",
        "The coffee had gone cold by then.",
        "It was late in the evening.",
    ),
)
AFTER = (
    (
        "There is no hurry.",
        "My neighbour would like to know as well.",
        "It slipped my mind this morning.",
        "Nobody at the table was sure.",
    ),
    (
        "It rained all afternoon.",
        "The kettle is on, by the way.",
        "The cat is asleep on the chair.",
        "We are still at home.",
    ),
)


def perturb(question: str, kind: str, strength: float, seed: int) -> str:
    """One question, perturbed.

    Every place of a question where a kind can act has a threshold, uniform in [0, 1) and drawn from kind, seed and
    question; the places whose threshold is below the strength are changed. So strength is the share of eligible places
    that are changed, on average over questions; what is changed at one strength is changed at every higher one; and
    the same arguments give the same text anywhere. Names stay as they stand: capitalised words other than the
    question's opening, numbers, and quotations (`balora.data.question_words`).

    Places, by kind:

    - `synonym`: words with an entry in `SYNONYMS`, but no possessives. A replacement is drawn, and `a` or `an` before
      it follows suit.
    - `paraphrase`: the rules of `balora.data.paraphrase` that change the question and no name in it. The chosen ones
      apply one after another; one that no longer can is left out.
    - `word_order`: pairs of neighbouring words that differ, with no name and no mark in or between them, taken from
      the left without overlap. A pair is exchanged.
    - `distractor`: two before the question and two after it. Each gets a sentence; the question itself stays whole.

    Args:
        question: A question in English.
        kind: One of `KINDS`.
        strength: In [0, 1]; 0 gives the question back.
        seed: Another seed, other places.

    Raises:
        BALoraError: If the kind is unknown or the strength outside [0, 1].
    """
    if kind not in KINDS:
        raise BALoraError(f"kind: {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if not 0 <= strength <= 1:
        raise BALoraError(f"strength: {strength} is not a share; use a number from 0 to 1")
    return KINDS[kind](question, strength, random.Random(f"{kind} {seed} {question}"))


def _synonym(question: str, strength: float, draws: random.Random) -> str:
    words = split_words(question)
    for i, word in enumerate(words):
        others = SYNONYMS.get(word.core.lower(), ())
        if others and not word.is_name and not word.after.startswith(("'", "’")):
            threshold, other = draws.random(), draws.choice(others)
            if threshold < strength:
                words[i] = word._replace(core=recased(other, word.core))
                if i and words[i - 1].core.lower() in ("a", "an") and not words[i - 1].is_name:
                    article = "an" if other[0] in "aeiou" else "a"
                    words[i - 1] = words[i - 1]._replace(core=recased(article, words[i - 1].core))
    return join_words(words)


def _paraphrase(question: str, strength: float, draws: random.Random) -> str:
    names = names_in(question)
    text = question
    for rule in RULES:
        threshold = draws.random()
        changed = rule(text)
        if threshold < strength and all(name in changed for name in names):
            text = changed
    return text


def _word_order(question: str, strength: float, draws: random.Random) -> str:
    words = split_words(question)
    i = 0
    while i + 1 < len(words):
        one, other = words[i], words[i + 1]
        if not _are_plain_neighbours(one, other):
            i += 1
            continue
        if draws.random() < strength:
            # The capital stays where it was; marks and white space do too.
            words[i] = one._replace(core=recased(other.core, one.core))
            words[i + 1] = other._replace(core=recased(one.core, other.core))
        i += 2
    return join_words(words)


def _are_plain_neighbours(one: Word, other: Word) -> bool:
    plain = not (one.is_name or other.is_name or one.after or other.before.strip())
    return plain and one.core.lower() != other.core.lower()


def _distractor(question: str, strength: float, draws: random.Random) -> str:
    remarks = [(draws.random() < strength, draws.choice(remarks)) for remarks in BEFORE + AFTER]
    before = [remark for chosen, remark in remarks[:2] if chosen]
    after = [remark for chosen, remark in remarks[2:] if chosen]
    return " ".join([*before, question, *after])


KINDS = {"synonym": _synonym, "paraphrase": _paraphrase, "word_order": _word_order, "distractor": _distractor}
