"""Teacher cache in a classifier's trainer: equal training, and exact resuming after an interruption."""

import os
import signal
from pathlib import Path

import pytest
import torch
from tiny_models import make
from transformers import TrainerCallback, TrainingArguments, set_seed

import balora
from balora.training import BALoraTrainer, InterruptCallback

pytestmark = pytest.mark.filterwarnings("ignore:balora", "ignore::FutureWarning")


def rows() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (24, 10), generator=generator)
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": torch.tensor(n % 3)}
        for n, row in enumerate(ids)
    ]


class Watch(TrainerCallback):
    """Counts the rows that the teacher runs on in each epoch; can send a signal before a step."""

    def __init__(self, model, interrupt_at: int | None = None) -> None:
        self.epochs, self.interrupt_at, real = [], interrupt_at, model.teacher_forward

        def teacher_forward(**inputs):
            self.epochs[-1] += len(inputs["input_ids"])
            return real(**inputs)

        model.teacher_forward = teacher_forward

    def on_epoch_begin(self, *args, **kwargs):
        self.epochs.append(0)

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.folders = list(Path(args.output_dir, "teacher_features").glob("*"))


def trainer_for(directory: Path, *, interrupt_at: int | None = None, **adapter) -> tuple[BALoraTrainer, Watch]:
    set_seed(42)
    config = balora.BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear", consistency_weight=0.5, **adapter)
    model = balora.get_balora_model(make("bert"), config)
    watch = Watch(model, interrupt_at)
    arguments = {"num_train_epochs": 3, "per_device_train_batch_size": 5, "learning_rate": 1e-2, "seed": 42}
    arguments |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    trainer = BALoraTrainer(
        model=model,
        args=TrainingArguments(str(directory), **arguments),
        train_dataset=rows(),
        callbacks=[watch, InterruptCallback()],
    )
    return trainer, watch


def weights(trainer: BALoraTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_teacher_sees_each_example_once_and_training_is_equal(tmp_path):
    trainer, watch = trainer_for(tmp_path / "cached")
    trainer.train()
    assert watch.epochs[0] == 24 + 5  # one pass to find the pooling, on the first batch
    assert watch.epochs[1] == 0
    assert len(watch.folders) == 1
    assert not (tmp_path / "cached" / "teacher_features").exists()
    other, each_time = trainer_for(tmp_path / "each time", teacher_cache_mb=0)
    other.train()
    assert each_time.epochs[:2] == [24, 24]
    for name, weight in weights(other).items():
        torch.testing.assert_close(weights(trainer)[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("memory", [512, 1e-4])
def test_interrupted_run_resumes_exactly(memory, tmp_path):
    whole, _ = trainer_for(tmp_path / "whole", teacher_cache_mb=memory)
    whole.train()
    for step in (2, 7):
        folder = tmp_path / f"cut-{step}"
        stopped, _ = trainer_for(folder, interrupt_at=step, teacher_cache_mb=memory)
        stopped.train()
        assert stopped.state.global_step == step + 1
        assert (folder / "teacher_features").exists()
        resumed, watch = trainer_for(folder, teacher_cache_mb=memory)
        resumed.train(resume_from_checkpoint=True)
        assert watch.epochs[0] < 24
        for name, weight in weights(whole).items():
            assert torch.equal(weights(resumed)[name], weight), (step, name)
