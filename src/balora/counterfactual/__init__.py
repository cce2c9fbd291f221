"""Counterfactual swaps: the same tokens about somebody else, and which position of theirs stands for which.

    swaps = Swaps(read_word_groups("gender"), tokenizer)
    other = swaps.swapped(ids, 1)        # "he is" → "she is", as tokens
    swaps.partners(1)                    # the vocabulary, each word at its partner's place

`words` has the lists, `swaps` what is done with them.
"""

from balora.counterfactual.swaps import Swapped, Swaps
from balora.counterfactual.words import WORD_LISTS, read_word_groups

__all__ = ["WORD_LISTS", "Swapped", "Swaps", "read_word_groups"]
