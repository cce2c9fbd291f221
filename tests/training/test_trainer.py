"""Trainers: logging, interruption and resuming, and use of Transformers' own trainer."""

import os
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_models import make, with_reg, without_labels
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import balora
from balora.adapters.averaging import average_with_base
from balora.errors import BALoraError, NonFiniteLossError
from balora.training import BALoraTrainer, InterruptCallback

pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore::FutureWarning")


def rows(count: int = 64) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    dataset = []
    for _ in range(count):
        length = int(torch.randint(6, 20, (), generator=generator))
        ids = torch.randint(5, 90, (length,), generator=generator)
        labels = ids.clone()
        labels[:3] = -100
        dataset.append({"input_ids": ids, "labels": labels})
    return dataset


def collate(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def padded(values: list[Tensor], filler: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=filler)

    return {
        "input_ids": padded([f["input_ids"] for f in features], 0),
        "attention_mask": padded([torch.ones_like(f["input_ids"]) for f in features], 0),
        "labels": padded([f["labels"] for f in features], -100),
    }


class StopAt(TrainerCallback):
    """Sends this process a signal at the beginning of a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), self.number)


def trainer_for(
    directory: Path, *, method: str = "pissa", cls: type = BALoraTrainer, callbacks=(), **settings
) -> Trainer:
    set_seed(42)
    adapter = {"pissa_niter": 2} if method == "pissa" else {}
    adapter |= {"lora_dropout": 0.1, "consistency_weight": 0.5, **settings.pop("adapter", {})}
    config = balora.BALoraConfig(method=with_reg(method), r=4, lora_alpha=8, target_modules="all-linear", **adapter)
    arguments = TrainingArguments(
        str(directory),
        **{
            "max_steps": 12,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 4,
            "save_steps": 100,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 42,
            **settings,
        },
    )
    return cls(
        model=balora.get_balora_model(make("llama"), config),
        args=arguments,
        train_dataset=rows(),
        data_collator=collate,
        callbacks=list(callbacks),
    )


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_every_component_and_weight_is_logged(tmp_path):
    trainer = trainer_for(tmp_path, logging_steps=2)
    trainer.train()
    first, second, *_, last = (row for row in trainer.state.log_history if "loss" in row)
    assert "loss_diversity" not in first, "two-phase terms have not begun"
    assert first["weight_diversity"] == 0
    assert last["weight_diversity"] == pytest.approx(0.005)
    assert last["weight_consistency"] == pytest.approx(0.5 * 0.5 * (1 + torch.tensor(torch.pi * 11 / 12).cos().item()))
    assert 0 < last["loss_consistency"] < 5
    assert second["loss_diversity"] == pytest.approx(last["loss_diversity"], rel=0.01), "a mean over computed steps"
    assert -3 < last["loss_diversity"] < 0
    for row in (first, second, last):
        assert {"loss_task", "loss_consistency", "weight_spectral"} <= row.keys()


def test_components_add_up_to_the_loss_for_any_accumulation(tmp_path):
    constant = {f"{term}_schedule": "constant" for term in ("consistency", "diversity", "spectral")}
    for accumulation in (1, 4):
        trainer = trainer_for(
            tmp_path / str(accumulation), gradient_accumulation_steps=accumulation, max_steps=4, adapter=constant
        )
        trainer.train()
        row = trainer.state.log_history[0]
        parts = sum(row[f"weight_{t}"] * row[f"loss_{t}"] for t in ("consistency", "diversity", "spectral"))
        assert row["loss"] == pytest.approx(row["loss_task"] + parts, rel=1e-4)


def test_accumulation_gives_the_same_adapter(tmp_path):
    results = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = trainer_for(
            tmp_path / str(size),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            learning_rate=1e-3,
            optim="sgd",
            adapter={
                "lora_dropout": 0.0,
                "spectral_weight": 0.0,
                "diversity_schedule": "constant",
                "diversity_weight": 0.3,
            },
        )
        trainer.train()
        results.append(weights(trainer))
    for other in results[1:]:
        for name, weight in results[0].items():
            torch.testing.assert_close(other[name], weight, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("method", "number"),
    [("lora", signal.SIGTERM), ("lora", signal.SIGINT), ("pissa", signal.SIGTERM), ("dora", signal.SIGINT)],
)
def test_interrupted_run_resumes_exactly(method, number, tmp_path):
    # A teacher that sees some of the sequences must see the same ones again.
    settings = {"method": method, "adapter": {"sample_rate": 0.5 if method == "pissa" else 1.0}}
    whole = trainer_for(tmp_path / "whole", **settings)
    whole.train()

    handler = signal.getsignal(number)
    interrupt = InterruptCallback()
    stopped = trainer_for(tmp_path / "cut", **settings, callbacks=[interrupt, StopAt(5, number)])
    stopped.train()
    assert interrupt.received == number
    assert stopped.state.global_step == 6
    assert signal.getsignal(number) == handler

    resumed = trainer_for(tmp_path / "cut", **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    expected = weights(whole)
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, expected[name]), name

    base = make("llama")
    checkpoint = tmp_path / "cut" / "checkpoint-6"
    reloaded = balora.BALoraModel.from_pretrained(base, checkpoint, is_trainable=True)
    inputs = without_labels(collate(rows(4)))
    expected_logits = make("llama")(**inputs).logits
    torch.testing.assert_close(reloaded.teacher_forward(**inputs).logits, expected_logits, rtol=0, atol=1e-5)


def test_gradient_checkpointing_trains_the_same_adapter(tmp_path):
    results = []
    for checkpointing in (False, True):
        trainer = trainer_for(tmp_path / str(checkpointing), gradient_checkpointing=checkpointing)
        trainer.train()
        results.append(weights(trainer))
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, rtol=1e-5, atol=1e-7)


def test_transformers_trainer_works_too(tmp_path):
    trainer = trainer_for(tmp_path, cls=Trainer, callbacks=[balora.ScheduleCallback()], save_steps=6)
    trainer.train()
    ours = trainer_for(tmp_path / "ours")
    ours.train()
    # Without balora's count of unpadded tokens, regularizers are weighted by labelled tokens: equal up to that share.
    for name, weight in weights(ours).items():
        assert (weights(trainer)[name] - weight).norm() < 0.05 * weight.norm() + 1e-3, name
    stock = PeftModel.from_pretrained(make("llama"), tmp_path / "checkpoint-12").eval()
    inputs = without_labels(collate(rows(4)))
    torch.testing.assert_close(stock(**inputs).logits, trainer.model.eval()(**inputs).logits, rtol=0, atol=1e-5)


def test_saved_model_card_has_the_measured_drift(tmp_path):
    trainer = trainer_for(tmp_path)
    trainer.train()
    assert trainer.model.drift["kl_to_base"] > 0
    trainer.save_model(tmp_path / "final")
    assert f"| `kl_to_base` | {trainer.model.drift['kl_to_base']:.6g} |" in (tmp_path / "final/README.md").read_text()


class Poison(TrainerCallback):
    """Sets one weight to NaN at the beginning of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            next(p for p in model.parameters() if p.requires_grad).data.fill_(float("nan"))


def test_nonfinite_loss_stops_and_keeps_the_last_checkpoint(tmp_path):
    trainer = trainer_for(tmp_path, save_steps=2, callbacks=[Poison(5)])
    with pytest.raises(NonFiniteLossError, match=r"step 6: the loss is nan .*Lower learning_rate"):
        trainer.train()
    checkpoints = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-4"]
    state = balora.BALoraModel.from_pretrained(make("llama"), tmp_path / "checkpoint-4").state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_nonfinite_weights_are_not_saved(tmp_path):
    trainer = trainer_for(tmp_path, max_steps=2)
    trainer.train()
    next(p for p in trainer.model.parameters() if p.requires_grad).data.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="no checkpoint was written"):
        trainer._save_checkpoint(trainer.model, None)


def test_replacing_the_objective_raises(tmp_path):
    with pytest.raises(BALoraError, match="label_smoothing_factor"):
        trainer_for(tmp_path, label_smoothing_factor=0.1)


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (None, "on 64 rows of the training set, since there was no evaluation set:"),
        (rows(10), "on 10 rows of the evaluation set:"),
        ({"mine": rows(7), "other": rows(5)}, "on 7 rows of the evaluation set `mine`:"),
    ],
)
def test_the_card_says_which_rows_drift_was_measured_on(tmp_path, evaluation, said):
    trainer = trainer_for(tmp_path, max_steps=1)
    trainer.eval_dataset = evaluation
    trainer.train()
    trainer.save_model(tmp_path / "final")
    assert said in (tmp_path / "final/README.md").read_text()


def test_averaging_is_on_the_card_and_drops_the_drift_of_other_weights(tmp_path):
    trainer = trainer_for(tmp_path, max_steps=1)
    trainer.train()
    average_with_base(trainer.model, 0.5)
    trainer.save_model(tmp_path / "final")
    card = (tmp_path / "final/README.md").read_text()
    assert "After training by `ba-lora`, the weights were averaged with the base model's" in card
    assert "scaled by 0.5" in card
    assert "Not measured" in card
