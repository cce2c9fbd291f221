"""A question as words, and which of them are names that a perturbation must leave as they stand."""

import re
from bisect import bisect_right
from typing import NamedTuple

#: White space and opening marks, the word from its first letter or digit to its last, closing marks.
TOKEN = re.compile(r"(\s*[^\w\s]*)(\S*\w)?(\S*)")
QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|‘[^’]*’|(?<!\w)'[^']*'(?!\w)")
_JOINING = "a an and at de del der des di du for in la le of on the to van von with y"
_OPENERS = """
    a according after although among an and are as at because before besides between both by can considered could did
    do does during following for former from had has have how if in is it many name near of on one other out since that
    the these they this though through to under was were what when where which while who whom whose why will with
    within would
"""
_NEGATED = "are could did do does had has have is should was were would"
_WITH_IS = "he how it she that there what where who"

#: Words that join two names into one, as in "University of Louisville".
JOINING = frozenset(_JOINING.split())
#: How questions begin. Another capitalised word at the start is a name.
OPENERS = frozenset(_OPENERS.split())
CONTRACTIONS = {
    **{f"{word}'s": f"{word} is" for word in _WITH_IS.split()},
    **{f"{word}n't": f"{word} not" for word in _NEGATED.split()},
    "can't": "cannot",
    "won't": "will not",
}


class Word(NamedTuple):
    """One word with what stands around it; `before + core + after` over all words is the question."""

    before: str
    core: str
    after: str
    is_name: bool


def split_words(question: str) -> list[Word]:
    """The words of a question and which of them belong to names.

    Part of a name is: a word with an upper-case letter, except one of `OPENERS` at the start; a word with a digit;
    everything in quotation marks; and up to two of `JOINING` between capitalised words, no marks between. A possessive
    `'s` is no part of its word. Marks alone are a word with an empty core, and count as a name: there is nothing to
    change in them.
    """
    tokens = [match for match in TOKEN.finditer(question) if match[0]]
    quotes = [match.span() for match in QUOTED.finditer(question)]
    words = []
    for number, token in enumerate(tokens):
        before, core, after = token.groups(default="")
        if core.lower().endswith(("'s", "’s")) and core.lower().replace("’", "'") not in CONTRACTIONS:
            core, after = core[:-2], core[-2:] + after
        # The first quotation that ends behind the word's start; they stand in their order, none in another.
        after_it = bisect_right(quotes, token.start() + len(before), key=lambda span: span[1])
        quoted = after_it < len(quotes) and quotes[after_it][0] < token.end()
        capital = any(map(str.isupper, core)) and not (number == 0 and core.lower() in OPENERS)
        words.append(Word(before, core, after, not core or quoted or capital or any(map(str.isdigit, core))))
    return _with_joining_words(words)


def join_words(words: list[Word]) -> str:
    """The question again."""
    return "".join(word.before + word.core + word.after for word in words)


def names_in(question: str) -> list[str]:
    """The names of a question as they stand in it: neighbouring words of names without marks between, quotations."""
    names: list[str] = []
    open_name = False
    for word in split_words(question):
        if word.is_name and open_name and not word.before.strip():
            names[-1] += word.before + word.core
        elif word.is_name:
            names.append(word.core)
        if word.is_name and word.after == ".":
            names[-1] += word.after
        open_name = word.is_name and word.after in ("", ".")
    stripped = [name.strip(" .") for name in names]
    return [name for name in stripped if name] + [match[0] for match in QUOTED.finditer(question)]


def recased(text: str, like: str) -> str:
    """A text with a capital at its start if `like` has one, and none otherwise."""
    return (text[0].upper() if like[0].isupper() else text[0].lower()) + text[1:]


def _with_joining_words(words: list[Word]) -> list[Word]:
    capital = [word.is_name and word.core[:1].isupper() for word in words]
    joined = list(words)
    for start in range(len(words)):
        for end in (start + 2, start + 3):
            between = words[start + 1 : end]
            if (
                end < len(words)
                and capital[start]
                and capital[end]
                and not words[start].after
                and all(word.core in JOINING and not word.before.strip() and not word.after for word in between)
            ):
                joined[start + 1 : end] = [word._replace(is_name=True) for word in between]
    return joined
