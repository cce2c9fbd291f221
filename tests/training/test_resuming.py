"""Resuming after a kill at any step gives the uninterrupted run's adapter, optimizer and log exactly.

A process that is killed leaves a folder; so each resume here starts from a copy of one, in which the checkpoints after
a step are not there yet but the teacher's features are.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments, set_seed

import balora
from balora.anchors import Anchors
from balora.counterfactual import Swaps
from balora.training import BALoraTrainer
from balora.training.reliable import ReliableTrainerMixin

pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore::FutureWarning")
#: Two epochs of three steps of two micro-batches; training ends within the second.
STEPS, EPOCH = 5, 3
WORDS = {f"w{i}": i for i in range(90)}


class Plain(ReliableTrainerMixin, Trainer):
    """The trainer of a study's baselines."""


def rows(classes: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(12):
        ids = torch.randint(5, 90, (6 + number % 5,), generator=generator)
        labels = torch.tensor(number % 3) if classes else ids.clone()
        made.append({"input_ids": ids, "labels": labels})
    return made


def collate(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def padded(values: list[Tensor], filler: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=filler)

    labels = [row["labels"] for row in features]
    return {
        "input_ids": padded([row["input_ids"] for row in features], 0),
        "attention_mask": padded([torch.ones_like(row["input_ids"]) for row in features], 0),
        "labels": torch.stack(labels) if labels[0].ndim == 0 else padded(labels, -100),
    }


def swaps() -> Swaps:
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Swaps([("w20", "w21"), ("w40", "w41")], PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def trainer_for(
    folder: Path, model: str, adapter: dict[str, Any], training: dict[str, Any], cls: type = BALoraTrainer
) -> Trainer:
    set_seed(42)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "consistency_weight": 0.5}
    settings |= {} if "method" in adapter else {"method": "ba-lora", "pissa_niter": 2}
    settings |= adapter
    adapted = balora.get_balora_model(make(model), balora.BALoraConfig(**settings))
    if "anchor_weight" in adapter:
        ids = torch.randint(5, 90, (7, 6), generator=torch.Generator().manual_seed(1))
        adapted.set_anchors(Anchors(ids, torch.ones_like(ids)))
    if "counterfactual_words" in adapter:
        adapted.set_swaps(swaps())
    fixed = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    fixed |= {"learning_rate": 1e-2, "logging_steps": 2, "save_steps": 1, "report_to": "none", "disable_tqdm": True}
    args = TrainingArguments(str(folder), **{**fixed, "use_cpu": True, "seed": 42, "warmup_steps": 2, **training})
    trainer = cls(model=adapted, args=args, train_dataset=rows(model == "bert"), data_collator=collate)
    trainer.drift_batches = 0
    return trainer


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    for number, entry in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{name} {number}": torch.as_tensor(value).clone() for name, value in entry.items()}
    return found


def losses_of(trainer: Trainer) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def killed_after(folder: Path, step: int, target: Path) -> Path:
    """Copy a run's folder as a kill between a step's checkpoint and the next one leaves it."""
    shutil.copytree(folder, target)
    for checkpoint in target.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    return target


class KeepFeatures(TrainerCallback):
    """Keeps the teacher's features, as a killed run does; a finished run deletes them."""

    def on_train_end(self, args, state, control, **kwargs):
        features = Path(args.output_dir) / "teacher_features"
        if features.exists():
            shutil.copytree(features, Path(args.output_dir) / "kept" / "teacher_features")


def assert_exact(tmp_path: Path, steps: list[int], **settings: Any) -> None:
    whole = trainer_for(tmp_path / "whole", **settings)
    whole.add_callback(KeepFeatures())
    train_loss = whole.train().training_loss
    expected, log = state_of(whole), losses_of(whole)
    assert len(log) == STEPS // 2
    for step in steps:
        cut = killed_after(tmp_path / "whole", step, tmp_path / f"cut {step}")
        if (cut / "kept").exists():
            (cut / "kept" / "teacher_features").rename(cut / "teacher_features")
            for file in (cut / "teacher_features").glob("*/*"):
                file.write_bytes(file.read_bytes()[:-3])  # torn by the kill
        resumed = trainer_for(cut, **settings)
        torch.rand(5)  # the resuming process has drawn other random numbers
        assert resumed.train(resume_from_checkpoint=True).training_loss == train_loss
        assert resumed.state.global_step == STEPS
        found = state_of(resumed)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), f"after step {step}: {name}"
        assert losses_of(resumed) == log, f"after step {step}"


LLAMA = {"model": "llama", "training": {}}
#: Settings with random numbers or state, one by one.
CASES = {
    "order by length": {**LLAMA, "adapter": {}, "training": {"train_sampling_strategy": "group_by_length"}},
    "dropout": {**LLAMA, "adapter": {"lora_dropout": 0.2}},
    "exact start": {**LLAMA, "adapter": {"pissa_niter": None}},
    "sampled teacher": {**LLAMA, "adapter": {"sample_rate": 0.5}},
    "bias path": {**LLAMA, "adapter": {"bias_path_weight": 0.5, "bias_path_sample_rate": 0.5, "lora_dropout": 0.1}},
    "schedules": {**LLAMA, "adapter": {f"{t}_schedule": "cosine" for t in ("consistency", "diversity", "spectral")}},
    "anchors": {**LLAMA, "adapter": {"anchor_weight": 0.3}},
    "anchors in every third step": {**LLAMA, "adapter": {"anchor_weight": 0.3, "anchor_every": 3}},
    "counterfactual teacher": {**LLAMA, "adapter": {"counterfactual_words": "mine"}},
    "whole logits": {**LLAMA, "adapter": {"fused_lm_head": False, "sample_rate": 0.5}},
    "gradient checkpointing": {
        **LLAMA,
        "adapter": {"lora_dropout": 0.2},
        "training": {"gradient_checkpointing": True},
    },
    "another optimizer": {**LLAMA, "adapter": {}, "training": {"optim": "adafactor"}},
    "bfloat16": {**LLAMA, "adapter": {"lora_dropout": 0.2}, "training": {"bf16": True}},
    "teacher cache": {"model": "bert", "adapter": {"method": "lora+reg", "lora_dropout": 0.1}, "training": {}},
    "no teacher cache": {"model": "bert", "adapter": {"teacher_cache_mb": 0}, "training": {}},
    "a baseline's trainer": {**LLAMA, "adapter": {"lora_dropout": 0.2}, "cls": Plain},
}
TOGETHER = {
    "lora_dropout": 0.1, "sample_rate": 0.5, "bias_path_weight": 0.5, "bias_path_sample_rate": 0.5,
    "anchor_weight": 0.3, "anchor_every": 2, "counterfactual_words": "mine",
}  # fmt: skip


def test_all_settings_together_resume_exactly(tmp_path):
    training = {"train_sampling_strategy": "group_by_length"}
    assert_exact(tmp_path, [2], model="llama", adapter=TOGETHER, training=training)


def test_checkpoint_of_the_last_step_is_loaded_without_training(tmp_path):
    """Within an epoch Transformers' trainer would take one more step."""
    training = {"lr_scheduler_type": "constant", "save_strategy": "steps"}
    assert_exact(tmp_path, [STEPS], model="bert", adapter={"method": "lora+reg"}, training=training)


def test_other_rows_per_step_are_refused(tmp_path):
    trainer_for(tmp_path / "whole", **LLAMA, adapter={}).train()
    cut = killed_after(tmp_path / "whole", 4, tmp_path / "cut")
    resumed = trainer_for(cut, **LLAMA, adapter={})
    rows_per_step = resumed.get_total_train_batch_size(resumed.args)
    resumed._train_batch_size *= 2
    said = (
        rf"checkpoint-4 was trained with {rows_per_step} rows a step, and this run has {2 * rows_per_step} \(per_dev"
    )
    with pytest.raises(balora.BALoraError, match=said):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 0


@pytest.mark.reliability
@pytest.mark.parametrize("case", CASES)
def test_kill_after_any_step_resumes_exactly(case, tmp_path):
    assert_exact(tmp_path, list(range(1, STEPS + 1)), **CASES[case])


class Sizes(TrainerCallback):
    """Records the size of the teacher's features at the end of each step."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def on_step_end(self, args, state, control, **kwargs):
        files = Path(args.output_dir, "teacher_features").glob("*/*")
        self.seen[state.global_step] = sum(file.stat().st_size for file in files)


@pytest.mark.reliability
def test_teacher_features_are_truncated_to_the_checkpoint(tmp_path):
    """Features written after it, perhaps partially, are written again by the same batches."""
    sizes = []
    for checkpoint in (None, str(tmp_path / "checkpoint-1")):
        trainer = trainer_for(tmp_path, **CASES["teacher cache"])
        sizes.append(Sizes())
        trainer.add_callback(sizes[-1])
        trainer.add_callback(KeepFeatures())
        trainer.train(resume_from_checkpoint=checkpoint)
        if checkpoint is None:
            (tmp_path / "kept" / "teacher_features").rename(tmp_path / "teacher_features")
            (tmp_path / "kept").rmdir()
    first, resumed = (of.seen for of in sizes)
    assert 0 < first[1] < first[2] < first[3] == first[4], "rows are new in the first epoch alone"
    assert resumed == {step: size for step, size in first.items() if step > 1}


@pytest.mark.reliability
def test_transformers_trainer_would_train_one_step_more(tmp_path):
    """If this fails, Transformers has fixed the error that `ResumableTrainerMixin` works around."""
    settings = {"model": "llama", "adapter": {}, "training": {}, "cls": Trainer}
    trainer_for(tmp_path, **settings).train()
    resumed = trainer_for(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS}"))
    assert resumed.state.global_step == STEPS + 1


def test_extended_run_resumes_from_its_last_step(tmp_path):
    settings = {"model": "llama", "adapter": {}}
    constant = {"lr_scheduler_type": "constant", "max_steps": 2}
    trainer_for(tmp_path, **settings, training=constant).train()
    longer = trainer_for(tmp_path, **settings, training=constant | {"max_steps": 3})
    longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 3
    kept = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    assert kept["global_step"] == 3
