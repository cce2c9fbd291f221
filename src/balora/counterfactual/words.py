"""Word lists of an attribute: groups of words that differ only in it, such as he and she."""

from collections.abc import Sequence
from pathlib import Path

from balora.errors import BALoraError

WordGroups = Sequence[tuple[str, ...]]

#: Word groups by attribute. Every word is in one group only, so that an exchange can be undone: "her", which means
#: both "his" and "him", is paired with "his".
WORD_LISTS: dict[str, WordGroups] = {
    "gender": (
        ("he", "she"),
        ("his", "her"),
        ("himself", "herself"),
        ("man", "woman"),
        ("men", "women"),
        ("boy", "girl"),
        ("boys", "girls"),
        ("father", "mother"),
        ("fathers", "mothers"),
        ("dad", "mom"),
        ("son", "daughter"),
        ("sons", "daughters"),
        ("brother", "sister"),
        ("brothers", "sisters"),
        ("husband", "wife"),
        ("husbands", "wives"),
        ("uncle", "aunt"),
        ("nephew", "niece"),
        ("grandfather", "grandmother"),
        ("grandson", "granddaughter"),
        ("king", "queen"),
        ("prince", "princess"),
        ("actor", "actress"),
        ("waiter", "waitress"),
        ("male", "female"),
        ("males", "females"),
        ("gentleman", "lady"),
        ("gentlemen", "ladies"),
        ("mr", "mrs"),
        ("policeman", "policewoman"),
        ("businessman", "businesswoman"),
    ),
    "religion": (
        ("christian", "muslim", "jewish"),
        ("christians", "muslims", "jews"),
        ("christianity", "islam", "judaism"),
        ("church", "mosque", "synagogue"),
        ("churches", "mosques", "synagogues"),
        ("priest", "imam", "rabbi"),
        ("bible", "quran", "torah"),
    ),
    "nationality": (
        ("american", "mexican", "chinese", "nigerian"),
        ("americans", "mexicans", "chinese people", "nigerians"),
        ("america", "mexico", "china", "nigeria"),
    ),
}


def read_word_groups(source: str) -> WordGroups:
    """Read word groups from a built-in list or a text file.

    Args:
        source: A name in `WORD_LISTS`, or a text file with one group per line, its words separated by commas; lines
            that begin with `#` are ignored.

    Raises:
        BALoraError: If the file cannot be read, groups differ in size or have one word, or a word occurs twice.
    """
    if source in WORD_LISTS:
        return WORD_LISTS[source]
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(
            f"{source}: neither a built-in list ({', '.join(WORD_LISTS)}) nor a readable file ({error})"
        ) from error
    groups, places = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        words = tuple(word.strip().lower() for word in line.split(","))
        if len(words) < 2 or not all(words) or (groups and len(words) != len(groups[0])):
            expected = "two or more" if not groups else f"{len(groups[0])}, as in the lines before,"
            raise BALoraError(
                f"{source}, line {number}: expected {expected} words separated by commas, found {line!r}"
            )
        for word in words:
            if word in places:
                raise BALoraError(
                    f"{source}, line {number}: {word!r} is already in line {places[word]}; use each word once"
                )
            places[word] = number
        groups.append(words)
    if not groups:
        raise BALoraError(f"{source}: the file has no word groups; write one per line, such as `he, she`")
    return groups
