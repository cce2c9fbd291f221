"""Word exchange in token sequences: each word of a group is replaced by another of the group; positions are matched.

Words are matched in the tokenizer's spellings: lower case, capitalized, upper case; after a space and without one.
A match must be a whole word, between tokens that do not continue it. If a word and its partner differ in their number
of tokens, the following positions shift; `Swapped.places` maps them.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from balora.counterfactual.words import WordGroups

#: Spellings of a word that are matched.
CASINGS: tuple[Callable[[str], str], ...] = (str.lower, str.capitalize, str.upper)


@dataclass(frozen=True)
class Swapped:
    """A token sequence with its words exchanged.

    Attributes:
        ids: The S' tokens after the exchange.
        places: For each of the S original tokens the position in `ids` at which the same text has been read, up to
            the exchange; −1 within a word of several tokens, where no position corresponds.
        origins: For each token in `ids` the position of the original token; for an exchanged word that of its first.
        words: Number of words exchanged.
    """

    ids: list[int]
    places: list[int]
    origins: list[int]
    words: int


class Swaps:
    """Word exchanges for one tokenizer.

    Args:
        groups: From `balora.counterfactual.read_word_groups`; all of one size.
        tokenizer: The model's tokenizer.

    Attributes:
        size: Members of a group; exchanging by `size` steps changes nothing.
        multi_token_words: Spellings with a group member of several tokens; predictions of these are not exchanged.
    """

    def __init__(self, groups: WordGroups, tokenizer: PreTrainedTokenizerBase) -> None:
        self.size = len(groups[0])
        self._vocabulary = len(tokenizer)
        self._pieces = tokenizer.convert_ids_to_tokens(list(range(self._vocabulary)))
        self._spaced = next((mark for mark in ("▁", "Ġ") if any(mark in piece for piece in self._pieces if piece)), "")
        special = frozenset(tokenizer.all_special_ids)
        self._texts = ["" if i in special else self._plain(piece or "") for i, piece in enumerate(self._pieces)]
        self._members: dict[tuple[int, ...], tuple[list[tuple[int, ...]], int]] = {}
        self.multi_token_words: list[str] = []
        for words in groups:
            for spelled in dict.fromkeys(tuple(casing(word) for word in words) for casing in CASINGS):
                for start in (" ", ""):
                    forms = [self._written(start, word, tokenizer) for word in spelled]
                    if None in forms or len(set(forms)) < len(forms):
                        continue
                    if any(len(form) > 1 for form in forms):
                        self.multi_token_words.append(start + "/".join(spelled))
                    for place, form in enumerate(forms):
                        self._members.setdefault(form, (forms, place))
        self._longest = max(map(len, self._members), default=0)
        self._partners = [self._permutation(steps) for steps in range(self.size)]

    def digest(self) -> str:
        """Return a hex digest of everything that decides which tokens are exchanged."""
        known = (self.size, self._pieces, self._texts, sorted(self._members.items()))
        return hashlib.blake2b(repr(known).encode(), digest_size=8).hexdigest()

    @property
    def is_empty(self) -> bool:
        """Return whether the tokenizer tells no group's words apart, so that nothing is ever exchanged."""
        return not self._members

    def partners(self, steps: int) -> Tensor:
        """Return the permutation of the vocabulary that exchanges words by `steps` members, `(V,)`.

        Tokens that are not a word of a group, or whose group has a member of several tokens, map to themselves.
        """
        return self._partners[steps]

    def members(self) -> Tensor:
        """Return each token's index within its word group, `(V,)`; −1 for tokens that are never exchanged."""
        found = torch.full((self._vocabulary,), -1)
        for form, (forms, place) in self._members.items():
            if all(len(other) == 1 for other in forms):
                found[form[0]] = place
        return found

    def _permutation(self, steps: int) -> Tensor:
        found = torch.arange(self._vocabulary)
        for form, (forms, place) in self._members.items():
            if all(len(other) == 1 for other in forms):
                found[form[0]] = forms[(place + steps) % self.size][0]
        return found

    def swapped(self, ids: Sequence[int], steps: int) -> Swapped:
        """Replace every word of a group by the member `steps` after it.

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
        """Return the longest whole word of a group that begins at this position."""
        if position and not self._begins(ids[position]) and self._ends_in_letter(ids[position - 1]):
            return None
        for length in range(min(self._longest, len(ids) - position), 0, -1):
            form = tuple(ids[position : position + length])
            if form in self._members and not self._continues_word(ids, position + length):
                return form
        return None

    def _continues_word(self, ids: list[int], position: int) -> bool:
        """Return whether the token at this position continues the word before it."""
        return position < len(ids) and not self._begins(ids[position]) and self._text(ids[position])[:1].isalnum()

    def _begins(self, token: int) -> bool:
        """Return whether this token has the tokenizer's beginning-of-word mark."""
        piece = self._pieces[token] or "" if token < self._vocabulary else ""
        return piece.startswith(self._spaced) if self._spaced else not piece.startswith("##")

    def _ends_in_letter(self, token: int) -> bool:
        return self._text(token)[-1:].isalnum()

    def _text(self, token: int) -> str:
        """Return a token's text; empty for the ids above the tokenizer's that models with padded embeddings have."""
        return self._texts[token] if token < self._vocabulary else ""

    def _plain(self, piece: str) -> str:
        return piece.replace(self._spaced, " ") if self._spaced else piece.removeprefix("##")

    def _written(self, start: str, word: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...] | None:
        """Return the tokens of a word after a space or an opening bracket; `None` if they merge with the context."""
        before = tokenizer("(" if not start else "x", add_special_tokens=False)["input_ids"]
        whole = tokenizer(("(" if not start else "x") + start + word, add_special_tokens=False)["input_ids"]
        return tuple(whole[len(before) :]) if whole[: len(before)] == before and len(whole) > len(before) else None
