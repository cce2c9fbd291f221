"""Counterfactual teacher: the pretrained model averaged over exchanges of words such as he and she.

    model = get_balora_model(model, BALoraConfig(method="ba-lora+swaps"), tokenizer=tokenizer)

`words` has the word lists, `swaps` exchanges the words in token sequences and `text` in plain texts, and `teacher`
averages the pretrained model's outputs over the exchanges, so that the student does not learn its preference.
"""

from balora.counterfactual.swaps import Swapped, Swaps
from balora.counterfactual.text import swap_text
from balora.counterfactual.words import WORD_LISTS, read_word_groups

__all__ = ["WORD_LISTS", "Swapped", "Swaps", "read_word_groups", "swap_text"]
