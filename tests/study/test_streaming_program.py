"""Training on a stream from a recipe: real rows and weights, read lazily, resumed in order."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
import yaml
from peft import get_peft_model_state_dict
from transformers import set_seed

from balora.cli import main
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.study.prepare import prepare
from balora.study.student import build_student
from balora.study.trainers import build_trainer

POISON = '{"question": "what'


@pytest.fixture
def settings(data_dir, models_dir, tmp_path) -> dict:
    """Return a streaming recipe on a hundred real rows, after which the file is broken."""
    lines = (data_dir / "gsm8k/train.jsonl").read_text().splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join([*lines[:100], POISON]))
    (tmp_path / "eval.jsonl").write_text("\n".join(lines[-8:]))
    return {
        "model_name_or_path": str(models_dir / "stories260k"),
        "train_file": str(tmp_path / "train.jsonl"),
        "validation_file": str(tmp_path / "eval.jsonl"),
        "prompt_column": "question",
        "completion_column": "answer",
        "max_length": 400,
        "streaming": True,
        "shuffle_buffer_size": 16,
        "r": 4,
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "training_arguments": {"use_cpu": True},
    }


def trainer_for(settings: dict, directory: Path):
    recipe = Recipe(**settings)
    prepared = prepare(recipe)
    set_seed(1)
    return build_trainer(prepared, build_student(prepared, recipe.method, 1, None), 1, directory, [])


def test_four_steps_need_no_more_rows_than_four_steps_have(settings, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | {"output_dir": str(tmp_path / "out")}))
    assert main(["train", str(path)]) == 0
    losses = [row["loss"] for row in json.loads((tmp_path / "out" / "history.json").read_text()) if "loss" in row]
    assert len(losses) == 4
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["metrics"]["kl_to_base"] > 0
    for more in (["--shuffle_buffer_size=101"], ["--streaming=false", "--shuffle_buffer_size=10000"]):
        assert main(["train", str(path), f"--output_dir={tmp_path / 'other'}", *more]) == 2
        assert "train.jsonl, line 101: not JSON" in capsys.readouterr().err


def test_sequential_batches_equal_those_of_the_whole_dataset(settings, tmp_path):
    settings |= {"train_sampling_strategy": "sequential", "max_train_samples": 10, "num_train_epochs": 3}
    clean = tmp_path / "clean.jsonl"
    clean.write_text(Path(settings["train_file"]).read_text().removesuffix(POISON))
    whole = trainer_for(settings | {"streaming": False, "train_file": str(clean)}, tmp_path / "whole")
    streamed = trainer_for(settings, tmp_path / "streamed")
    expected = list(whole.get_train_dataloader())
    found = list(islice(streamed.get_train_dataloader(), 2))
    assert len(found) == 2
    for one, other in zip(found, expected[:2], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_training_continues_in_the_same_order(settings, tmp_path):
    settings |= {"max_train_samples": 10, "max_steps": 6, "save_steps": 4}
    settings["training_arguments"] = {"use_cpu": True, "save_total_limit": 2}
    whole = trainer_for(settings, tmp_path)
    seen = [batch["input_ids"] for batch in islice(whole.get_train_dataloader(), 6)]  # 24 rows of 10
    whole.train()
    resumed = trainer_for(settings, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert not torch.equal(seen[0], seen[4])
    adapters = [get_peft_model_state_dict(trainer.model) for trainer in (whole, resumed)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    losses = [{row["step"]: row["loss"] for row in t.state.log_history if "loss" in row} for t in (whole, resumed)]
    assert losses[0] == losses[1]


def test_another_seed_is_another_order(settings, tmp_path):
    prepared = prepare(Recipe(**settings))
    batches = []
    for seed in (1, 2, 1):
        model = build_student(prepared, "ba-lora", seed, None)
        trainer = build_trainer(prepared, model, seed, tmp_path, [])
        batches.append(next(iter(trainer.get_train_dataloader()))["input_ids"])
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[0], batches[1])


def test_rows_of_a_stream_are_packed(settings, tmp_path):
    rows = [{"question": f"who is {number} ?", "answer": "she ."} for number in range(50)]
    Path(settings["train_file"]).write_text("\n".join(map(json.dumps, rows)))
    trainer = trainer_for(settings | {"packing": True, "max_length": 256, "max_steps": 2}, tmp_path)
    trainer.train()
    assert trainer.state.global_step == 2
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["position_ids"] == 0).sum() > 2 * settings["per_device_train_batch_size"]


def test_a_row_beyond_the_context_is_named_by_its_place_in_the_file(settings, tmp_path):
    rows = [{"question": "who ?", "answer": "she ." * (600 if number == 7 else 1)} for number in range(1, 10)]
    Path(settings["train_file"]).write_text("\n".join(map(json.dumps, rows)))
    trainer = trainer_for(settings | {"max_length": None, "validation_file": None}, tmp_path)
    with pytest.raises(
        BALoraError, match=r"train\.jsonl, row 7: \d+ tokens, but the model's context is 512; set max_"
    ):
        trainer.train()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"max_steps": -1}, "max_steps: missing; a stream has no length"),
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy: group_by_length needs the length"),
        ({"validation_share": 0.1}, "validation_share: streaming cannot hold out"),
        ({"subset_seed": 1, "max_train_samples": 5}, "subset_seed: streaming takes the first max_train_samples rows"),
        ({"label_column": "label"}, "streaming: only rows of a causal language model"),
        ({"task_type": "SEQ_2_SEQ_LM"}, "streaming: only rows of a causal language model"),
        ({"shuffle_buffer_size": 0}, "shuffle_buffer_size: 0 is out of range"),
    ],
)
def test_settings_that_a_stream_does_not_support_raise(spoil, message):
    files = {"model_name_or_path": "no/such-model", "train_file": "absent.jsonl"}
    with pytest.raises(BALoraError, match=message):
        Recipe(**{**files, "streaming": True, "max_steps": 4, **spoil})


def test_a_chat_without_a_template_raises(settings, tmp_path):
    row = {"messages": [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "she"}]}
    for file in ("train_file", "validation_file"):
        Path(settings[file]).write_text(json.dumps(row))
    columns = {"prompt_column": None, "completion_column": None}
    with pytest.raises(BALoraError, match="chat rows need a chat template"):
        trainer_for(settings | columns, tmp_path)
