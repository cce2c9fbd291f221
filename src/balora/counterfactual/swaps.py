"""Texts, as tokens, with every word of some groups exchanged for the next of its group, and positions matched.

A word is looked for as its tokenizer writes it: in small letters, with a capital, in capitals; behind a space and
without one. It counts only where it stands alone, between tokens that do not continue a word. What has another number
of tokens than its partner shifts what follows, which `Swapped.places` says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from balora.counterfactual.words import WordGroups

#: How a word may be written.
CASINGS: tuple[Callable[[str], str], ...] = (str.lower, str.capitalize, str.upper)


@dataclass(frozen=True)
class Swapped:
    """A text with its words exchanged.

    Attributes:
        ids: Its S' tokens.
        places: For each of the S tokens of the text as it was, the place here at which the same has been read, up to
            the exchange; −1 within a word of several tokens, where nothing corresponds.
        origins: For each token here the place of the one that it came from, of a word its first.
        words: How many were exchanged.
    """

    ids: list[int]
    places: list[int]
    origins: list[int]
    words: int


class Swaps:
    """Exchanges for one tokenizer.

    Args:
        groups: From `balora.counterfactual.read_word_groups`; all of one size.
        tokenizer: The model's.

    Attributes:
        size: Members of a group: an exchange by `size` steps is none.
        left_alone: Words, as written, that no single token stands for in one of their group's members, so that what
            is predicted in their place stays.
    """

    def __init__(self, groups: WordGroups, tokenizer: PreTrainedTokenizerBase) -> None:
        self.size = len(groups[0])
        self._vocabulary = len(tokenizer)
        self._pieces = tokenizer.convert_ids_to_tokens(list(range(self._vocabulary)))
        self._spaced = next((mark for mark in ("▁", "Ġ") if any(mark in piece for piece in self._pieces if piece)), "")
        special = frozenset(tokenizer.all_special_ids)
        self._texts = ["" if i in special else self._plain(piece or "") for i, piece in enumerate(self._pieces)]
        self._members: dict[tuple[int, ...], tuple[list[tuple[int, ...]], int]] = {}
        self.left_alone: list[str] = []
        for words in groups:
            for spelled in dict.fromkeys(tuple(casing(word) for word in words) for casing in CASINGS):
                for start in (" ", ""):
                    forms = [self._written(start, word, tokenizer) for word in spelled]
                    if None in forms or len(set(forms)) < len(forms):
                        continue
                    if any(len(form) > 1 for form in forms):
                        self.left_alone.append(start + "/".join(spelled))
                    for place, form in enumerate(forms):
                        self._members.setdefault(form, (forms, place))
        self._longest = max(map(len, self._members), default=0)
        self._partners = [self._exchanged(steps) for steps in range(self.size)]

    def partners(self, steps: int) -> Tensor:
        """For each token of the vocabulary the one that stands for the member so many steps on, `(V,)`.

        A permutation; tokens that are no word of a group, or of one with a member of several tokens, stay.
        """
        return self._partners[steps]

    def members(self) -> Tensor:
        """For each token of the vocabulary its word's place in its group, `(V,)`; −1 for those that never move."""
        found = torch.full((self._vocabulary,), -1)
        for form, (forms, place) in self._members.items():
            if all(len(other) == 1 for other in forms):
                found[form[0]] = place
        return found

    def _exchanged(self, steps: int) -> Tensor:
        found = torch.arange(self._vocabulary)
        for form, (forms, place) in self._members.items():
            if all(len(other) == 1 for other in forms):
                found[form[0]] = forms[(place + steps) % self.size][0]
        return found

    def swapped(self, ids: Sequence[int], steps: int) -> Swapped:
        """A text with every word of a group exchanged for the one so many steps on.

        Args:
            ids: S tokens.
            steps: From 1 to `size` − 1.
        """
        ids = list(ids)
        out: list[int] = []
        places: list[int] = []
        origins: list[int] = []
        words = position = 0
        while position < len(ids):
            form = self._word_at(ids, position)
            if form is None:
                out.append(ids[position])
                origins.append(position)
                places.append(len(out) - 1)
                position += 1
                continue
            forms, place = self._members[form]
            other = forms[(place + steps) % self.size]
            out += other
            origins += [position] * len(other)
            places += [-1] * (len(form) - 1) + [len(out) - 1]
            position += len(form)
            words += 1
        return Swapped(out, places, origins, words)

    def _word_at(self, ids: list[int], position: int) -> tuple[int, ...] | None:
        """The longest word of a group that begins here and stands alone."""
        if position and not self._begins(ids[position]) and self._ends_in_letter(ids[position - 1]):
            return None
        for length in range(min(self._longest, len(ids) - position), 0, -1):
            form = tuple(ids[position : position + length])
            if form in self._members and not self._goes_on(ids, position + length):
                return form
        return None

    def _goes_on(self, ids: list[int], position: int) -> bool:
        return position < len(ids) and not self._begins(ids[position]) and self._texts[ids[position]][:1].isalnum()

    def _begins(self, token: int) -> bool:
        """Whether a word begins with this token by the tokenizer's own mark."""
        piece = self._pieces[token] or ""
        return piece.startswith(self._spaced) if self._spaced else not piece.startswith("##")

    def _ends_in_letter(self, token: int) -> bool:
        return self._texts[token][-1:].isalnum()

    def _plain(self, piece: str) -> str:
        return piece.replace(self._spaced, " ") if self._spaced else piece.removeprefix("##")

    def _written(self, start: str, word: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
        """The tokens of a word within a text, behind a space or behind an opening bracket; `None` if they cannot be
        told from those of what is before it."""
        before = tokenizer("(" if not start else "x", add_special_tokens=False)["input_ids"]
        whole = tokenizer(("(" if not start else "x") + start + word, add_special_tokens=False)["input_ids"]
        return tuple(whole[len(before) :]) if whole[: len(before)] == before and len(whole) > len(before) else None
