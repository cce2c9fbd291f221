"""Options on the command line: only whole names, and a suggestion for any other."""

import pytest

from balora.audit.settings import parse_audit
from balora.cli import main
from balora.errors import BALoraError
from balora.recipe.parse import parse


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "'learning_rate'"),
        ("--learnin_rate", "'learning_rate'"),
        ("--learning-rate", "'learning_rate'"),
        ("--epochs", "'num_train_epochs'"),
        ("--rank", "'r'"),
        ("--alpha", "'lora_alpha'"),
        ("--dropout", "'lora_dropout'"),
        ("--output", "'output_dir'"),
        ("--model", "'model_name_or_path'"),
        ("--batch_size", "'per_device_train_batch_size' or 'per_device_eval_batch_size'"),
        ("--max_step", "'max_steps'"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_an_abbreviation_or_a_wrong_name_is_refused_with_a_suggestion(option, meant, joined):
    arguments = [f"{option}=1e-4"] if joined else [option, "1e-4"]
    with pytest.raises(BALoraError, match=rf"^{option}: unknown option; did you mean {meant}\?$"):
        parse("train", arguments)


def test_an_option_like_no_other_is_refused():
    with pytest.raises(BALoraError, match=r"^--zzz: unknown option; see balora train --help$"):
        parse("train", ["--zzz", "3"])
    with pytest.raises(BALoraError, match=r"^--own: unknown option; did you mean 'own_texts' or 'own_length'\?"):
        parse_audit(["base", "--own=3"])


@pytest.mark.parametrize("arguments", [["--r", "4", "8"], ["other.yaml"], ["--r=4", "8"]])
def test_a_value_without_an_option_is_refused(arguments):
    with pytest.raises(BALoraError, match=f"^'{arguments[-1]}': no option stands before this value; write"):
        parse("quickstart", ["--output_dir=out", *arguments])


def test_options_of_worlds_and_lists_and_odd_values_are_read():
    arguments = ["--world.facts", "9", "--methods+=bitfit", "--prompt_template", "- {prompt}", "--weight_decay", "-0"]
    recipe, _ = parse("train", arguments)
    assert recipe.world.facts == 9
    assert recipe.methods[-1] == "bitfit"
    assert recipe.prompt_template == "- {prompt}"


def test_the_quickstart_asks_for_no_recipe(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["quickstart", "--help"])
    assert capsys.readouterr().out.startswith("usage: balora quickstart [--key value …]\n")


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("balora 0.")
