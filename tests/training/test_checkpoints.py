"""Checkpoints are atomic; a damaged one is reported, and the previous one is used."""

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import make
from torch import Tensor
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

import balora
from balora.errors import BALoraError
from balora.training import BALoraTrainer
from balora.training.checkpoints import MANIFEST, UNFINISHED, last_intact_checkpoint, rotate, write_manifest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
TESTS = Path(__file__).resolve().parents[1]
FILES = ("adapter_model.safetensors", "optimizer.pt", "task/adapter_model.safetensors", "trainer_state.json")


def written(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    for name in FILES:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(json.dumps({"global_step": step, "name": name}).encode())
    write_manifest(checkpoint)
    return checkpoint


def cut_short(file: Path, place: int) -> None:
    file.write_bytes(file.read_bytes()[: place % file.stat().st_size])


def flip_a_bit(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    file.write_bytes(content)


def remove(file: Path, place: int) -> None:
    file.unlink()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), damage=st.sampled_from([cut_short, flip_a_bit, remove]), place=st.integers(0, 999))
def test_any_damage_is_detected_and_the_previous_checkpoint_used(tmp_path_factory, name, damage, place):
    folder = tmp_path_factory.mktemp("run")
    before, last = written(folder, 9), written(folder, 10)
    assert last_intact_checkpoint(folder) == str(last)
    damage(last / name, place)
    with pytest.warns(UserWarning, match=rf"checkpoint-10 is damaged: {name} .*trying checkpoint-9 instead"):
        assert last_intact_checkpoint(folder) == str(before)


def test_checkpoint_without_manifest_is_intact_if_its_state_is_readable(tmp_path):
    checkpoint = written(tmp_path, 3)
    (checkpoint / MANIFEST).unlink()
    assert last_intact_checkpoint(tmp_path) == str(checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"global_st')
    with pytest.warns(UserWarning, match="there is no earlier one, so training starts over"):
        assert last_intact_checkpoint(tmp_path) is None


def test_unfinished_folder_is_not_a_checkpoint(tmp_path):
    whole = written(tmp_path, 1)
    written(tmp_path / UNFINISHED, 2)
    assert last_intact_checkpoint(tmp_path) == get_last_checkpoint(tmp_path) == str(whole)


def test_rotation_keeps_the_checkpoint_just_written(tmp_path):
    """Transformers would keep the highest number if files are less than a second apart."""
    written(tmp_path, 4)
    flip_a_bit(written(tmp_path, 8) / "optimizer.pt", 0)
    now = written(tmp_path, 6)
    rotate(tmp_path, 1, [now])
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize(("limit", "left"), [(None, 5), (0, 5), (2, 2), (3, 3)])
def test_rotation_deletes_the_oldest(limit, left, tmp_path):
    steps = [written(tmp_path, step) for step in range(1, 6)]
    for age, path in enumerate(steps):
        os.utime(path, (age, age))
    rotate(tmp_path, limit, [steps[-1], steps[0]])
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert kept == {path.name for path in [steps[0], *steps[len(steps) - left + 1 :]]}


def rows() -> list[dict[str, Tensor]]:
    ids = torch.randint(5, 90, (8, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids]


def trainer_for(folder: Path, eval_dataset: list | None = None, **training) -> BALoraTrainer:
    set_seed(42)
    config = balora.BALoraConfig(r=4, lora_alpha=8, target_modules="all-linear", method="lora+reg", lora_dropout=0.1)
    fixed = {"max_steps": 3, "per_device_train_batch_size": 2, "save_steps": 1, "learning_rate": 1e-2}
    fixed |= {"report_to": "none", "disable_tqdm": True, "use_cpu": True, **training}
    model = balora.get_balora_model(make("llama"), config)
    args = TrainingArguments(str(folder), **fixed)
    trainer = BALoraTrainer(model=model, args=args, train_dataset=rows(), eval_dataset=eval_dataset)
    trainer.drift_batches = 0
    return trainer


def weights(trainer: BALoraTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_training_resumes_before_a_damaged_checkpoint_and_rejects_it_by_name(tmp_path):
    whole = trainer_for(tmp_path)
    whole.train()
    flip_a_bit(tmp_path / "checkpoint-3" / "optimizer.pt", 1000)
    resumed = trainer_for(tmp_path)
    with pytest.raises(BALoraError, match=r"checkpoint-3 is damaged: optimizer\.pt does not match its checksum"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.warns(UserWarning, match="trying checkpoint-2 instead"):
        resumed.train(resume_from_checkpoint=True)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert last_intact_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3"), "written again"


def test_best_checkpoint_is_kept_and_loaded_at_the_end(tmp_path):
    choosing = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = trainer_for(tmp_path, rows(), **choosing, learning_rate=10.0)  # it gets worse
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    state = json.loads((tmp_path / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")
    assert last_intact_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT, None])
def test_full_disk_raises_one_error_and_keeps_earlier_checkpoints(reason, tmp_path, monkeypatch):
    trainer, save = trainer_for(tmp_path), torch.save

    def full(content, file, *args, **kwargs):
        if "checkpoint-2" in str(file) and "optimizer" in str(file):
            raise KeyboardInterrupt if reason is None else OSError(reason, os.strerror(reason))
        save(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    if reason is None:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        with pytest.raises(BALoraError, match=rf"^{tmp_path}: the disk is full \(.* MB free\)"):
            trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert not list((tmp_path / UNFINISHED).glob("*"))
    assert last_intact_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


FULL_DISK = """
    import sys
    from pathlib import Path
    sys.path[:0] = [sys.argv[1], sys.argv[1] + "/training"]
    from test_checkpoints import trainer_for, last_intact_checkpoint
    from balora.errors import BALoraError

    folder = Path(sys.argv[2])
    trainer = trainer_for(folder, max_steps=50)
    try:
        trainer.train()
    except BALoraError as error:
        print(error)
        whole = last_intact_checkpoint(folder)
        print(whole, trainer.state.global_step)
        for old in folder.glob("checkpoint-*"):
            if str(old) != whole:
                import shutil
                shutil.rmtree(old)
        trainer_for(folder, max_steps=trainer.state.global_step).train(resume_from_checkpoint=True)
        print("went on")
"""


@pytest.mark.reliability
@pytest.mark.parametrize("kilobytes", [1200, 1350])  # sizes at which different files fail first
def test_real_full_file_system(kilobytes, tmp_path):
    """Run in a separate mount namespace, where Linux permits one."""
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    mount = f"mount -t tmpfs -o size={kilobytes}k none {tmp_path}/disk && exec {sys.executable} {script} {TESTS}"
    (tmp_path / "disk").mkdir()
    if subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path / "disk")]).returncode:
        pytest.skip("no file system can be mounted here")
    run = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} {tmp_path}/disk"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    error, whole, after = [line for line in run.stdout.splitlines() if not line.startswith("{")]
    assert error.startswith(f"{tmp_path}/disk: the disk is full")
    path, step = whole.split()
    assert path == f"{tmp_path}/disk/checkpoint-{int(step) - 1}"
    assert after == "went on"
