"""Texts in one spelling, and in a looser one by which duplicates are found."""

import re
import unicodedata

FENCE = "```"


def normalize_text(text: str) -> str:
    """A text whose look stays and whose spelling is one of many no longer; doing it twice changes nothing more.

    - Unicode's canonical composition (NFC): é is one character, not e and an accent. Compatible characters (ﬁ, ²)
      stay.
    - Lines end in a line feed alone, not in CR LF or CR.
    - White space around the text goes, and at the ends of lines. Two or more empty lines become one, and two or more
      blanks after a line's first word become one space. Indentation stays.
    - Between triple backticks, where white space is the author's code, all of it stays.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    parts = text.split(FENCE)
    parts[::2] = map(_without_spare_space, parts[::2])  # every other part is within a fence
    return FENCE.join(parts).strip()


def comparison_key(text: str) -> str:
    """What two texts share that differ only in case, white space and composition."""
    return " ".join(normalize_text(text).casefold().split())


def _without_spare_space(text: str) -> str:
    text = re.sub(r"(?<![^\S\n])[^\S\n]+\n", "\n", text)  # from a run's start alone, or long ones take long squared
    text = re.sub(r"\n{3,}", "\n\n", text)
    return re.sub(r"(?<=\S)[^\S\n]{2,}", " ", text)
