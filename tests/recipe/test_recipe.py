"""The recipe is composed of parts, and reaches every field of `BALoraConfig`."""

from dataclasses import fields

import pytest
import yaml
from peft import LoraConfig

from balora.cli import main
from balora.config import BALoraConfig, Initialization, Regularizers
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import UNUSED, parse
from balora.recipe.recipe import INSTEAD, PARTS
from balora.study.method_config import balora_config

DATA = {"model_name_or_path": "m", "train_file": "rows.jsonl"}
#: Fields of `BALoraConfig` that a recipe sets by other means.
DERIVED = {
    "method": "methods of a recipe add regularizers and 4 bits to it (`ba-lora`, `qlora`)",
    "seed": "that of the run",
    "sentence_dim": "the length of what `sentence_encoder` gives",
    "quantization_config": "for methods in 4 bits, `quantization_config` over QLoRA's settings",
}


def test_no_field_of_the_configuration_is_left_out():
    own = {f.name for f in fields(BALoraConfig)} - {f.name for f in fields(LoraConfig)}
    shared = {f.name for part in (Initialization, Regularizers) for f in fields(part)}
    assert own == shared | set(DERIVED)
    assert shared <= {f.name for f in fields(Recipe)}


def test_adapter_arguments_reach_the_fields_of_peft():
    further = {"layers_to_transform": [0], "rank_pattern": {"q_proj": 4}}
    recipe = Recipe(**DATA, target_modules=["q_proj"], adapter_arguments=further)
    config = balora_config(recipe, seed=0)
    assert (config.layers_to_transform, config.rank_pattern) == ([0], {"q_proj": 4})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"r": 4}, "adapter_arguments: 'r' is a recipe key"), ({"rank": 4}, "adapter_arguments: unknown 'rank'")],
)
def test_wrong_adapter_arguments_are_refused(arguments, message):
    with pytest.raises(BALoraError, match=message):
        Recipe(**DATA, adapter_arguments=arguments)


def test_arguments_that_peft_refuses_are_named():
    recipe = Recipe(**DATA, target_modules="all-linear", adapter_arguments={"layers_to_transform": [0]})
    with pytest.raises(BALoraError, match="adapter_arguments: `layers_to_transform` cannot be used when"):
        balora_config(recipe, seed=0)


def test_a_direction_of_the_bias_path_cannot_come_from_a_recipe():
    with pytest.raises(BALoraError, match="bias_path_mode: counterfactual takes a direction that only Python"):
        Recipe(**DATA, bias_path_weight=1.0, bias_path_mode="counterfactual")


def test_every_setting_is_declared_in_one_part():
    names = [f.name for part in PARTS for f in fields(part)]
    assert len(names) == len(set(names))
    assert set(names) == {f.name for f in fields(Recipe)}


@pytest.mark.parametrize("command", UNUSED)
def test_help_shows_the_groups_and_only_what_the_command_uses(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for part in PARTS:
        shown = [f.name for f in fields(part) if f.name not in UNUSED[command]]
        heading = part.__doc__.splitlines()[0].rstrip(".")
        assert (heading in text) == bool(shown)
        assert all(f"--{name} " in text for name in shown)
    assert not any(f"--{name} " in text for name in UNUSED[command])
    assert "Annotated" not in text


def test_a_later_recipe_file_wins(tmp_path):
    first, second = tmp_path / "mine.yaml", tmp_path / "mine.calibrated.yaml"
    first.write_text(yaml.safe_dump({**DATA, "consistency_weight": 0.5, "r": 3}))
    second.write_text("# Found.\nconsistency_weight: 0.25\n")
    recipe, _ = parse("train", [str(first), "--recipe", str(second)])
    assert (recipe.consistency_weight, recipe.r) == (0.25, 3)
    recipe, _ = parse("train", [str(first), "--recipe", str(second), "--consistency_weight", "1"])
    assert recipe.consistency_weight == 1


@pytest.mark.parametrize("key", ["learning_rate", "seed", "output_dir", "max_steps", "max_length", "packing", "bf16"])
def test_training_arguments_do_not_contradict_the_recipe(key):
    with pytest.raises(BALoraError, match=f"^training_arguments: {key} is a key of the recipe itself"):
        Recipe(**DATA, training_arguments={key: 1})


@pytest.mark.parametrize("key", INSTEAD)
def test_training_arguments_that_nothing_uses_are_refused(key):
    with pytest.raises(BALoraError, match=f"^training_arguments: {key} is not used; "):
        Recipe(**DATA, training_arguments={key: True})
