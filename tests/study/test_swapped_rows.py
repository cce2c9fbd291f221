"""Counterfactual data augmentation: which rows are added, and what stands in them."""

import pytest
from datasets import Dataset

from balora.errors import BALoraError
from balora.study.swapped_rows import with_swapped_rows


def test_rows_with_a_word_are_added_exchanged():
    rows = Dataset.from_dict({"prompt": ["He ran.", "It rained."], "completion": [" so did his dog", " all day"]})
    found = with_swapped_rows(rows, "gender")
    assert found.features == rows.features
    assert found.to_list()[:2] == rows.to_list()
    assert found.to_list()[2:] == [{"prompt": "She ran.", "completion": " so did her dog"}]


def test_labels_stay_and_every_member_of_a_group_has_its_row(tmp_path):
    (tmp_path / "words.txt").write_text("red, green, blue\n")
    rows = Dataset.from_dict({"text": ["a red car", "a car"], "label": [1, 0]})
    found = with_swapped_rows(rows, str(tmp_path / "words.txt"))
    assert found["text"][:] == ["a red car", "a car", "a green car", "a blue car"]
    assert found["label"][:] == [1, 0, 1, 1]


def test_every_message_is_exchanged():
    messages = [{"role": "user", "content": "Is he here?"}, {"role": "assistant", "content": "He is."}]
    found = with_swapped_rows(Dataset.from_list([{"messages": messages}]), "gender")
    assert [message["content"] for message in found[1]["messages"]] == ["Is she here?", "She is."]


def test_rows_without_the_words_are_an_error():
    with pytest.raises(BALoraError, match="swapped_rows: no training row has a word of gender"):
        with_swapped_rows(Dataset.from_dict({"text": ["a car"]}), "gender")
