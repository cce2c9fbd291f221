"""Words that name an attribute, in groups whose members differ in it alone: he and she; Christian, Muslim, Jewish."""

from collections.abc import Sequence
from pathlib import Path

from balora.errors import BALoraError

WordGroups = Sequence[tuple[str, ...]]

#: By attribute. Every word is in one group, so that exchanging groups' members twice (of two) gives the text back:
#: English has one "her" for "his" and "him", and it stands here for "his".
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
    """A list of ours by its name, or a file of one's own.

    Args:
        source: One of `WORD_LISTS`, or a text file with a group a line, its words parted by commas; lines that begin
            with `#` are left out.

    Raises:
        BALoraError: If there is no such file, or its groups are not of one size from two on, of words each in one
            place alone.
    """
    if source in WORD_LISTS:
        return WORD_LISTS[source]
    try:
        lines = Path(source).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BALoraError(
            f"{source}: neither a list of ours ({', '.join(WORD_LISTS)}) nor a file that can be read ({error})"
        ) from error
    groups, places = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        words = tuple(word.strip().lower() for word in line.split(","))
        if len(words) < 2 or not all(words) or (groups and len(words) != len(groups[0])):
            expected = "two or more" if not groups else f"{len(groups[0])}, as in the lines before,"
            raise BALoraError(f"{source}, line {number}: expected {expected} words parted by commas, found {line!r}")
        for word in words:
            if word in places:
                raise BALoraError(f"{source}, line {number}: {word!r} is in line {places[word]} already")
            places[word] = number
        groups.append(words)
    if not groups:
        raise BALoraError(f"{source}: no groups of words; write one a line, such as `he, she`")
    return groups
