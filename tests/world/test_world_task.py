"""The counting task: right answers, wanted noise and imbalance, and splits that share nothing."""

from collections import Counter
from dataclasses import replace

import pytest

from balora.world import WorldConfig, vocabulary
from balora.world.language import make_language, make_line
from balora.world.task import make_rows, rarest_answer

CONFIG = WorldConfig(train_rows=4000, eval_rows=500)


def rows(config, split="train"):
    return make_rows(config, make_language(config), split)


def counted(prompt):
    _, target, _, *items, _ = prompt.split()
    return f" {vocabulary.NUMBERS[items.count(target)]}"


def test_answers_are_right_except_for_label_noise():
    assert all(row["completion"] == counted(row["prompt"]) for row in rows(CONFIG, "eval"))
    assert all(row["completion"] == counted(row["prompt"]) for row in rows(replace(CONFIG, label_noise=0.0)))
    wrong = [row for row in rows(CONFIG) if row["completion"] != counted(row["prompt"])]
    assert len(wrong) / CONFIG.train_rows == pytest.approx(0.1, abs=0.015)
    assert len(Counter(row["completion"] for row in wrong)) == CONFIG.task_classes
    assert all(row["completion"] != counted(row["prompt"]) for row in rows(replace(CONFIG, label_noise=1.0)))


def test_label_noise_changes_completions_alone_and_adds_to_less_noise():
    clean, some, more = (rows(replace(CONFIG, label_noise=share)) for share in (0.0, 0.1, 0.4))
    assert [row["prompt"] for row in clean] == [row["prompt"] for row in more]
    assert all(m == s for c, s, m in zip(clean, some, more, strict=True) if s != c)


def test_imbalance_is_the_ratio_of_most_to_least_frequent():
    balanced = Counter(counted(row["prompt"]) for row in rows(CONFIG))
    assert all(count / CONFIG.train_rows == pytest.approx(0.2, abs=0.02) for count in balanced.values())
    skewed = Counter(counted(row["prompt"]) for row in rows(replace(CONFIG, class_imbalance=16.0)))
    for more, fewer in zip(vocabulary.NUMBERS[:4], vocabulary.NUMBERS[1:5], strict=True):
        assert skewed[f" {more}"] / skewed[f" {fewer}"] == pytest.approx(2, rel=0.25)  # 16 over four halvings
    assert rarest_answer(CONFIG) == " four"
    assert min(skewed, key=skewed.get) == " four"


def test_imbalance_leaves_evaluation_alone():
    assert rows(CONFIG, "eval") == rows(replace(CONFIG, class_imbalance=16.0, label_noise=0.4), "eval")
    assert set(Counter(row["completion"] for row in rows(CONFIG, "eval")).values()) == {100}


def test_more_rows_add_to_the_same_ones():
    assert rows(replace(CONFIG, train_rows=4100))[:4000] == rows(CONFIG)


@pytest.mark.parametrize("task_items", [5, 6, 64])
@pytest.mark.parametrize("list_length", [4, 5, 10])
def test_no_prompt_is_in_both_splits(task_items, list_length):
    config = replace(
        CONFIG, task_items=task_items, list_length=list_length, task_classes=4, train_rows=1000, label_noise=0.0
    )
    train, held_out = ({row["prompt"] for row in rows(config, split)} for split in ("train", "eval"))
    assert not train & held_out
    assert len(held_out) > 30
    assert len({word for prompt in train for word in prompt.split()}) == task_items + 3


@pytest.mark.parametrize("task_items", range(5, 65))
def test_even_the_smallest_class_has_a_held_out_prompt(task_items):
    config = replace(CONFIG, task_items=task_items, list_length=4, task_classes=4, eval_rows=4)
    assert rows(config, "eval")[3]["completion"] == " three"  # 3 of 4 leaves the fewest prompts


def test_the_form_of_the_task_is_new_to_the_model():
    language = make_language(CONFIG)
    text = " ".join(make_line(language, "pretraining", index) for index in range(3000)).split()
    assert {"count", ":", "=>"}.isdisjoint(text)
    assert set(vocabulary.NUMBERS) <= set(text)
