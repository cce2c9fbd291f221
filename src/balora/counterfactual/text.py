"""Word exchange in plain texts, for models that read whole texts.

`balora.counterfactual.swaps` exchanges tokens and matches positions, as the teacher needs.
"""

import re

from balora.counterfactual.words import WordGroups


def swap_text(text: str, groups: WordGroups, steps: int = 1) -> tuple[str, int]:
    """Replace every whole word of a group by the member `steps` after it, keeping its case.

    Upper case and capitalized words stay so; all others become lower case. Of overlapping words, such as `chinese` and
    `chinese people`, the longest is matched.

    Args:
        text: Any text.
        groups: From `read_word_groups`.
        steps: Number of members to advance, cyclically.

    Returns:
        The text, and the number of words exchanged.
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
