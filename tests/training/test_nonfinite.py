"""Non-finite losses and gradients: training stops, or skips only that step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments, set_seed

import balora
from balora.errors import BALoraError, NonFiniteLossError
from balora.training import BALoraTrainer
from balora.training.reliable import find_rows

pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore::FutureWarning")
BAD_ROW, BAD_TOKEN = 5, 91


def rows() -> list[dict[str, Tensor]]:
    """Build 16 rows, one of which has a unique token."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(16):
        ids = torch.randint(5, 90, (6 + number % 4,), generator=generator)
        if number == BAD_ROW:
            ids[2] = BAD_TOKEN
        made.append({"input_ids": ids, "labels": ids.clone()})
    return made


def collate(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    def padded(values: list[Tensor], filler: int) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=filler)

    ids = [row["input_ids"] for row in features]
    labels = padded([row["labels"] for row in features], -100)
    return {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([torch.ones_like(row) for row in ids], 0),
        "labels": labels,
    }


class LeaveOut(TrainerCallback):
    """Oracle for `skip`: clears a step's gradients before the optimizer runs."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step + 1 == self.step:
            for parameter in model.parameters():
                parameter.grad = None


class Overflow(TrainerCallback):
    """Makes the gradient of one step infinite, with a finite loss."""

    def __init__(self, model: torch.nn.Module, step: int) -> None:
        self.here, self.step = False, step
        parameter = next(p for p in model.parameters() if p.requires_grad)
        parameter.register_hook(lambda g: g * float("inf") if self.here else g)

    def on_step_begin(self, args, state, control, **kwargs):
        self.here = state.global_step + 1 == self.step


class Halved(BALoraTrainer):
    """Trains under float16 autocast, which Accelerate does not support on CPUs."""

    def compute_loss_context_manager(self):
        return torch.autocast("cpu", dtype=torch.float16)


def trainer_for(
    folder: Path, *, nonfinite: str = "skip", embedding: float = 0.0, cls: type = BALoraTrainer, **training: Any
) -> BALoraTrainer:
    """Build a trainer of a model in which the bad row's token has a large embedding entry."""
    set_seed(42)
    base = make("llama")
    with torch.no_grad():
        base.get_input_embeddings().weight[BAD_TOKEN, 0] = embedding
    config = balora.BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear", consistency_weight=0.5)
    fixed = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    fixed |= {"save_strategy": "no", "learning_rate": 1e-2, "weight_decay": 0.1, "report_to": "none"}
    fixed |= {"disable_tqdm": True, "use_cpu": True, **training}
    args = TrainingArguments(str(folder), **fixed)
    model = balora.get_balora_model(base, config)
    trainer = cls(model=model, args=args, train_dataset=rows(), data_collator=collate)
    trainer.drift_batches, trainer.nonfinite = 0, nonfinite
    return trainer


def state_of(trainer: BALoraTrainer) -> dict[str, Tensor]:
    found = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    for number, entry in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{name} {number}": value.clone() for name, value in entry.items()}
    return found


def losses_of(trainer: BALoraTrainer) -> list[dict[str, float]]:
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("cause", ["loss", "gradient", "loss in bfloat16"])
def test_skipped_step_changes_nothing_and_is_counted(cause, tmp_path):
    bf16 = {"bf16": cause == "loss in bfloat16"}
    skipping = trainer_for(tmp_path / "a", embedding=0.0 if cause == "gradient" else float("inf"), **bf16)
    if cause == "gradient":
        skipping.add_callback(Overflow(skipping.model, 2))
    skipping.train()
    kept = sorted((tmp_path / "a" / "nonfinite").iterdir())
    step = int(kept[0].name.split("-")[1])
    left_out = trainer_for(tmp_path / "b", **bf16)
    left_out.add_callback(LeaveOut(step))
    left_out.train()
    expected = state_of(left_out)
    for name, value in state_of(skipping).items():
        assert torch.equal(value, expected[name]), name
    assert skipping.skipped_steps == 1
    log = losses_of(skipping)
    assert [row["skipped_steps"] for row in log] == [int(row["step"] >= step) for row in log]
    assert ["grad_norm" in row for row in log] == [row["step"] != step for row in log]
    if cause == "gradient":
        assert len(kept) == 2, "both micro-batches may be at fault"
        assert all("loss_task" in row for row in log)
    else:
        assert len(kept) == 1
        batch = load_file(kept[0])
        assert BAD_ROW in batch["rows"]
        assert not batch["loss"].isfinite()
        for row, ids in zip(batch["rows"], batch["input_ids"], strict=True):
            own = rows()[row]["input_ids"]
            assert torch.equal(ids[: len(own)], own)
        assert {"labels", "attention_mask"} <= batch.keys()
        assert all(torch.isfinite(torch.tensor(row.get("loss_task", 0.0))) for row in log)


@pytest.mark.parametrize("cause", ["loss", "gradient"])
def test_stop_names_batch_and_row(cause, tmp_path):
    trainer = trainer_for(tmp_path, nonfinite="stop", embedding=float("nan") if cause == "loss" else 0.0)
    if cause == "gradient":
        trainer.add_callback(Overflow(trainer.model, 1))
    loss, gradient = r"the loss is nan \(task nan", "step 1: the loss is finite, but its gradient is not"
    message = loss if cause == "loss" else gradient
    with pytest.raises(NonFiniteLossError, match=rf"{message}.* saved in .*step-\d.*rows .* of the training set"):
        trainer.train()
    assert list((tmp_path / "nonfinite").glob("step-*.safetensors"))
    if cause == "gradient":
        assert not trainer.optimizer.state_dict()["state"], "the optimizer has seen nothing"


def test_ten_skipped_steps_in_a_row_stop(tmp_path):
    trainer = trainer_for(tmp_path, max_steps=30, gradient_accumulation_steps=1)
    next(p for p in trainer.model.parameters() if p.requires_grad).data.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="step 10: in 10 steps, one after the other, the loss or its"):
        trainer.train()


def test_float16_overflows_and_bfloat16_does_not(tmp_path):
    """Logits exceed 65,504."""
    trained = {}
    for name, cls, bf16 in (("fp16", Halved, False), ("bf16", BALoraTrainer, True)):
        trainer = trainer_for(tmp_path / name, nonfinite="stop", cls=cls, bf16=bf16, max_steps=1)
        with torch.no_grad():
            trainer.model.get_base_model().lm_head.weight.mul_(1e6)
        trained[name] = trainer
    trained["bf16"].train()
    with pytest.raises(NonFiniteLossError, match="step 1: the loss is"):
        trained["fp16"].train()


@pytest.mark.reliability
def test_skipped_steps_are_restored_on_resume(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "embedding": float("inf")}
    whole = trainer_for(tmp_path, **saving)
    whole.train()
    for step in range(1, 4):
        resumed = trainer_for(tmp_path, **saving)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert resumed.skipped_steps == 1
        assert losses_of(resumed) == losses_of(whole)
        assert all(torch.equal(value, state_of(whole)[name]) for name, value in state_of(resumed).items())


def test_unknown_policy_raises(tmp_path):
    with pytest.raises(BALoraError, match="nonfinite: unknown 'ignore'; use stop or skip"):
        trainer_for(tmp_path, nonfinite="ignore").train()


def test_rows_are_found_by_tokens_regardless_of_padding():
    dataset = rows()
    batch = collate([dataset[3], dataset[9], {"input_ids": torch.tensor([1, 2]), "labels": torch.tensor([1, 2])}])
    assert find_rows(dataset, batch).tolist() == [3, 9, -1]
    flipped = {name: value.flip(1) for name, value in collate([dataset[3], dataset[2]]).items()}
    turned = [{"input_ids": row["input_ids"].flip(0).tolist()} for row in dataset]
    assert find_rows(turned, flipped).tolist() == [3, 2], "padded on the left"
    assert find_rows([dataset[0]] * 2, collate([dataset[0]] * 2)).tolist() == [0, 1], "twins"
    assert find_rows(iter(dataset), batch) is None
    assert find_rows([{"text": "a"}], batch) is None
