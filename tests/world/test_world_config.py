"""Knobs: what is refused, and what names a world."""

from dataclasses import fields, replace

import pytest

from balora.errors import BALoraError
from balora.world import WorldConfig
from balora.world.config import _LIMITS


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("seed", -1),
        ("facts", 0),
        ("facts", 2.5),
        ("facts", True),
        ("objects", 25),
        ("occupations", 25),
        ("pronoun_skew", 1.1),
        ("pronoun_skew", float("nan")),
        ("pretraining_noise", -0.1),
        ("pretraining_imbalance", 0.5),
        ("label_noise", "0.1"),
        ("class_imbalance", 0.5),
        ("task_classes", 1),
        ("task_classes", 11),
        ("train_rows", 0),
        ("hidden_size", None),
        ("pretrain_learning_rate", 0),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(knob, value):
    with pytest.raises(BALoraError, match=f"{knob} must be .* not {value!r}"):
        WorldConfig(**{knob: value})


def test_inconsistent_settings_are_refused():
    with pytest.raises(BALoraError, match="list_length must be at least task_classes = 7, not 6"):
        WorldConfig(task_classes=7, list_length=6)
    with pytest.raises(BALoraError, match="task_items must be at most facts = 8, not 9"):
        WorldConfig(facts=8, task_items=9)
    with pytest.raises(BALoraError, match=r"hidden_size must be a multiple of .* = 8, not 36"):
        WorldConfig(hidden_size=36, num_attention_heads=4)


def test_every_setting_has_limits_and_a_docstring_line():
    for field in fields(WorldConfig):
        low, high = _LIMITS[field.name]
        assert low <= field.default <= high
        assert f"\n        {field.name}: " in WorldConfig.__doc__


def test_fingerprints_are_stable_and_differ_for_every_setting():
    default = WorldConfig()
    assert WorldConfig(class_imbalance=1).fingerprint == WorldConfig(class_imbalance=1.0).fingerprint
    changed = {
        "pronoun_skew": 0.8,
        "label_noise": 0.2,
        "pretraining_noise": 0.5,
        "class_imbalance": 5.0,
        "pretrain_learning_rate": 0.5,
        "list_length": 20,
        "task_classes": 3,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "pretrain_block_size": 32,
    }
    variants = [
        replace(default, **{field.name: changed.get(field.name, field.default + 1 if field.default < 12 else 8)})
        for field in fields(WorldConfig)
    ]
    assert len({config.fingerprint for config in [default, *variants]}) == len(fields(WorldConfig)) + 1
    assert len(default.fingerprint) == 16


def test_a_later_setting_at_its_neutral_value_keeps_old_fingerprints():
    assert WorldConfig().fingerprint == "bff9312285359aaa"
    assert WorldConfig().pretraining_fingerprint == "f733ceac9f082c49"
    assert WorldConfig(pretraining_imbalance=1).fingerprint == "bff9312285359aaa"
    assert WorldConfig(pretraining_imbalance=2).pretraining_fingerprint != "f733ceac9f082c49"


def test_task_settings_do_not_change_the_pretraining_fingerprint():
    default = WorldConfig()
    task = replace(default, label_noise=0.3, class_imbalance=4.0, task_classes=3, train_rows=10, list_length=4)
    assert task.pretraining_fingerprint == default.pretraining_fingerprint
    assert task.fingerprint != default.fingerprint
    assert replace(default, facts=32).pretraining_fingerprint != default.pretraining_fingerprint
