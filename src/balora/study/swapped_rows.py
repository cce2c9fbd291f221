"""Counterfactual data augmentation: each training row again with its words exchanged (CDA, Lu et al. 2018).

The original rows stay: two-sided (Webster et al. 2020). A row without a word of the groups stands once.
"""

from typing import Any

from datasets import Dataset, concatenate_datasets

from balora.counterfactual import read_word_groups
from balora.counterfactual.text import swap_text
from balora.counterfactual.words import WordGroups
from balora.errors import BALoraError

#: Columns of rows in their standard forms that hold text.
TEXTS = ("text", "text_pair", "prompt", "completion")


def with_swapped_rows(rows: Dataset, words: str) -> Dataset:
    """Return training rows, and after them those with a word of a group, exchanged for each further member.

    Args:
        rows: In a standard form: text (pair) and label, prompt and completion, messages, or text.
        words: As for `read_word_groups`.

    Raises:
        BALoraError: If the words cannot be read, or occur in no row.
    """
    groups = read_word_groups(words)
    added = []
    for steps in range(1, len(groups[0])):
        swapped = [_swapped(row, groups, steps) for row in rows]
        numbers = [number for number, (_, count) in enumerate(swapped) if count]
        if numbers:
            changed = {name: [swapped[number][0][name] for number in numbers] for name in rows.column_names}
            added.append(Dataset.from_dict(changed, features=rows.features))
    if not added:
        raise BALoraError(f"swapped_rows: no training row has a word of {words}; leave it out, or name other words")
    return concatenate_datasets([rows, *added])


def _swapped(row: dict[str, Any], groups: WordGroups, steps: int) -> tuple[dict[str, Any], int]:
    """Return a row with its words exchanged, and how many were."""
    changed, total = dict(row), 0
    for name in TEXTS:
        if isinstance(row.get(name), str):
            changed[name], count = swap_text(row[name], groups, steps)
            total += count
    if isinstance(row.get("messages"), list):
        changed["messages"] = []
        for message in row["messages"]:
            said, count = message.get("content"), 0
            if isinstance(said, str):
                said, count = swap_text(said, groups, steps)
            changed["messages"].append({**message, "content": said})
            total += count
    return changed, total
