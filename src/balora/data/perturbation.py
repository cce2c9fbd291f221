"""Perturb a question, more so with rising strength, without changing its answer.

Four kinds, without a model or corpus: `synonym` replaces words, `paraphrase` changes the form of the question,
`word_order` exchanges neighbouring words, and `distractor` adds unrelated remarks around the question.
"""

import random
import re

from balora.data.question_words import CONTRACTIONS, SYNONYMS, Word, join_words, names_in, recased, split_words
from balora.errors import BALoraError

#: Remarks for the two places before a question and the two places after it.
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


_NOUNS = """
    actor actress album area author award band battle book branch brand breed brother car category century channel
    character city club college comedy company continent corporation country county date day director district film
    game genre group island job kind lake language league magazine man month mountain movement movie musician name
    nationality network newspaper novel occupation part person place play player politician position prize producer
    profession region river road role school season series show singer song sport state station street style team
    town type university village war woman writer year
"""
#: Nouns before which `what` may replace `which`.
NOUNS = frozenset(_NOUNS.split())
PREPOSITIONS = "at|by|for|from|in|of|on|to|under|with"
AUXILIARIES = "are|is|was|were|do|does|did|has|have|had|can|could|will|would"
FRONTED = re.compile(rf"({PREPOSITIONS}) (which|what|whom)\b(.*?)(\s*\?*\s*)", re.IGNORECASE | re.DOTALL)
STRANDED = re.compile(
    rf"(which|what|whom?)\b([^,]{{0,60}}? (?:{AUXILIARIES})\b.*) ({PREPOSITIONS})(\s*\?*\s*)", re.DOTALL
)
RELATIVE = re.compile(r" (that|what|which|whom?|whose|where)\b")
ENDS_IN_PREPOSITION = re.compile(rf" ({PREPOSITIONS})\W*$")
DETERMINER = re.compile(rf"((?:(?:{PREPOSITIONS}) )?)(which|what) ([a-z]+)\b(.*)", re.IGNORECASE | re.DOTALL)
ALTERNATIVES = re.compile(r"(which|who|what)\b([^,:]*)[,:] (?:either )?([^,]+) or ([^,]+?)(\s*\?*\s*)")
#: Beginnings of direct questions; other questions begin like a statement.
ASKING = re.compile(
    rf"((?:{PREPOSITIONS}) )?(what|which|who|whom|whose)\b|(when|where|why|how|between)\b"
    rf"|({AUXILIARIES})\b",
    re.IGNORECASE,
)
BOTH = re.compile(r"(are|were|is|do|did|have|can)( .+? and .+?) both( .+)", re.DOTALL)
NAMING = re.compile(r"(who|what) (is|are) ((?:the|an?) [a-z]+(?: [a-z]+){0,3} (?:of|who|that|for|behind) .*?)[\s?]*")
EXPANSIONS = {full: short for short, full in CONTRACTIONS.items()}


def perturb(question: str, kind: str, strength: float, seed: int) -> str:
    """Perturb one question.

    Each place of a question where a kind can act has a threshold, uniform in [0, 1) and drawn from kind, seed and
    question; the places with a threshold below the strength are changed. So the strength is the share of eligible
    places that are changed, on average over questions; a place changed at one strength is changed at every higher one;
    and the result depends on the arguments only. Names are not changed: capitalised words other than the first word
    of a question, numbers, and quotations (`balora.data.question_words`).

    The places of each kind:

    - `synonym`: words with an entry in `SYNONYMS`, except possessives. A replacement is drawn, and `a` or `an` before
      it is adapted.
    - `paraphrase`: the `RULES` that change the question and no name in it. The chosen ones are applied in order; one
      that no longer applies is skipped.
    - `word_order`: pairs of different neighbouring words without a name or a mark in or between them, taken from the
      left without overlap. The two words are exchanged.
    - `distractor`: two before the question and two after it. A sentence is added; the question itself is unchanged.

    Args:
        question: A question in English.
        kind: One of `KINDS`.
        strength: In [0, 1]; 0 returns the question unchanged.
        seed: Seed of the thresholds and replacements.

    Raises:
        BALoraError: If the kind is unknown or the strength outside [0, 1].
    """
    if kind not in KINDS:
        raise BALoraError(f"kind: {kind!r} is unknown; use one of {', '.join(KINDS)}")
    if not 0 <= strength <= 1:
        raise BALoraError(f"strength: {strength} is out of range; use a number from 0 to 1")
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
            # The capital letter, marks and white space keep their places.
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


def contract_or_expand(question: str) -> str:
    """Exchange contractions and full forms outside names: `What is` → `What's`, `didn't` → `did not`."""
    words, out = split_words(question)[::-1], []
    while words:
        word, following = words.pop(), words[-1] if words else None
        full = CONTRACTIONS.get(word.core.lower().replace("’", "'"))
        pair = following and not word.after and not following.is_name and following.before == " "
        short = EXPANSIONS.get(f"{word.core} {following.core}".lower()) if pair else None
        if not word.is_name and full is not None:
            word = word._replace(core=recased(full, word.core))
        elif not word.is_name and short is not None:
            word = word._replace(core=recased(short, word.core), after=words.pop().after)
        out.append(word)
    return join_words(out)


def exchange_which_and_what(question: str) -> str:
    """`Which film …` ↔ `What film …`, also after a preposition; `what` only before one of `NOUNS`."""
    found = _opening(DETERMINER, question)
    if found is None:
        return question
    before, wh, noun, rest = found.groups()
    other = "what" if wh.lower() == "which" else "which"
    fits = noun not in ("of", "is", "are", "was", "were") if other == "what" else noun in NOUNS
    return f"{before}{recased(other, wh)} {noun}{rest}" if fits else question


def move_preposition(question: str) -> str:
    """`In which city is it?` ↔ `Which city is it in?`; to the front only if there is no relative clause."""
    fronted = _opening(FRONTED, question)
    if fronted is not None and not ENDS_IN_PREPOSITION.search(question):
        preposition, wh, rest, end = fronted.groups()
        wh = "who" if wh.lower() == "whom" else wh.lower()
        return f"{recased(wh, preposition)}{rest} {preposition.lower()}{end}"
    stranded = _opening(STRANDED, question)
    if stranded is not None and not RELATIVE.search(stranded[2]):
        wh, rest, preposition, end = stranded.groups()
        wh = "whom" if wh.lower() == "who" else wh.lower()
        return f"{recased(preposition, question)} {wh}{rest}{end}"
    return question


def move_alternatives(question: str) -> str:
    """`Which is old, A or B?` → `Between A and B, which is old?`; `Are A and B both …?` → `Are both A and B …?`."""
    found = _opening(ALTERNATIVES, question)
    if found is not None and question.count(" or ") == 1:
        wh, asked, one, other, end = found.groups()
        return f"{recased('between', question)} {one} and {other}, {wh.lower()}{asked}{end}"
    found = _opening(BOTH, question)
    return question if found is None else recased(f"{found[1]} both{found[2]}{found[3]}", question)


def ask_to_tell(question: str) -> str:
    """`Who is the author of X?` → `Tell me who the author of X is.`; other questions unchanged after `Tell me`."""
    plain = question.strip()
    found = _opening(NAMING, plain)
    if found is not None and not ENDS_IN_PREPOSITION.search(found[3]):
        return f"Tell me {found[1].lower()} {found[3]} {found[2]}."
    if not plain:
        return question
    return f"Tell me, {recased(plain, 'a')}" if ASKING.match(plain) else f"Tell me this: {plain}"


def _opening(pattern: re.Pattern[str], question: str) -> re.Match[str] | None:
    """Match the whole question, ignoring the case of its first letter."""
    return pattern.fullmatch(question) or pattern.fullmatch(recased(question, "a")) if question else None


#: Rules that return a question in another form, or unchanged if they do not apply. They are applied in this order,
#: in which no rule prevents a later one.
RULES = (contract_or_expand, exchange_which_and_what, move_preposition, move_alternatives, ask_to_tell)
