"""Texts with every word of some groups exchanged for another of its group, for models that read whole texts.

`swaps` exchanges tokens and matches positions, which a teacher needs; here a text is all that is wanted.
"""

import re

from balora.counterfactual.words import WordGroups


def swap_text(text: str, groups: WordGroups, steps: int = 1) -> tuple[str, int]:
    """A text with every whole word of a group exchanged for the one so many steps on, in its casing.

    A word in capitals stays so, one with a capital keeps it, and any other becomes small letters. Of words that begin
    alike, such as `chinese` and `chinese people`, the longer one counts.

    Args:
        text: Any text.
        groups: From `read_word_groups`.
        steps: How far to go on in each group, around its end.

    Returns:
        The text, and how many words were exchanged.
    """
    places = {word: (group, place) for group in groups for place, word in enumerate(group)}
    longest_first = sorted(places, key=len, reverse=True)

    def other(found: re.Match[str]) -> str:
        group, place = places[found[0].lower()]
        return _cased(group[(place + steps) % len(group)], found[0])

    words = "|".join(map(re.escape, longest_first))
    return re.subn(rf"(?<!\w)(?:{words})(?!\w)", other, text, flags=re.IGNORECASE)


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word
