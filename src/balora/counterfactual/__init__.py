"""A teacher without the skew: what the pretrained model says on average over whom a text is about.

    model = get_balora_model(model, BALoraConfig(counterfactual_words="gender"))
    model.set_swaps(Swaps(read_word_groups("gender"), tokenizer))

`words` has the lists, `swaps` exchanges what is in them within tokens and `text` within texts, `teacher` averages the
pretrained model over the exchanges, so that a student who agrees with it has not its preference.
"""

from balora.counterfactual.swaps import Swapped, Swaps
from balora.counterfactual.text import swap_text
from balora.counterfactual.words import WORD_LISTS, read_word_groups

__all__ = ["WORD_LISTS", "Swapped", "Swaps", "read_word_groups", "swap_text"]
