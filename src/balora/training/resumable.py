"""`ResumableTrainerMixin`: exact resuming of a trainer that was killed at any time.

Transformers' trainer saves weights, optimizer, schedule and random state. This mixin adds what it omits: the loss
since the last log, the random state that an epoch's order was drawn from, and the training time.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from balora.errors import BALoraError
from balora.training.checkpoints import (
    UNFINISHED,
    check_checkpoint,
    last_intact_checkpoint,
    move_into_place,
    rotate,
    write_manifest,
)
from balora.utils.files import report_full_disk, write_tensors


class ResumableTrainerMixin:
    """Mixin for trainers of Transformers and TRL: atomic checkpoints, and exact resuming from them.

    `train(resume_from_checkpoint=True)` takes the latest intact checkpoint. One of the last step is loaded without
    further training, where Transformers' trainer, within an epoch, would take one more step.

    Attributes:
        train_seconds: Seconds of training so far, those before a resume included.
    """

    train_seconds: float = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._saving = False
        self._resumed: dict[str, Tensor] = {}
        self._restored = False
        self._began = time.perf_counter()
        self._epoch_began_with = torch.get_rng_state()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or resume from a checkpoint.

        Raises:
            BALoraError: If no intact checkpoint exists, the one named is damaged or was trained with another number of
                rows a step, or the disk is full.
        """
        folder = Path(self.args.output_dir)
        checkpoint = resume_from_checkpoint or None
        if checkpoint is True:
            checkpoint = last_intact_checkpoint(folder)
            if checkpoint is None:
                raise BALoraError(f"resume_from_checkpoint: {folder} has no intact checkpoint to resume from")
        elif checkpoint is not None:
            check_checkpoint(checkpoint)
        if self.is_world_process_zero():
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        kept = None if checkpoint is None else Path(checkpoint) / self._progress_file
        self._resumed = {} if kept is None or not kept.exists() else load_file(kept)
        self._restored = False
        self._check_rows_per_step(checkpoint)
        self.train_seconds = before = self._resumed.get("train_seconds", torch.tensor(0.0)).item()
        self._began = time.perf_counter() - before
        with report_full_disk(folder):
            output = super().train(checkpoint, *args, **kwargs)
        if self.state.global_step > self._initial_global_step:
            self.train_seconds = time.perf_counter() - self._began
        return output

    def _check_rows_per_step(self, checkpoint: str | bool | None) -> None:
        # Steps are counted from the checkpoint, so with other steps rows would be left out or trained on twice.
        now = self.get_total_train_batch_size(self.args)
        before = int(self._resumed.get("rows_per_step", now))
        if now != before:
            raise BALoraError(
                f"resume_from_checkpoint: {checkpoint} was trained with {before} rows a step, and this run has {now} "
                "(per_device_train_batch_size × gradient_accumulation_steps × processes); give the same number of "
                "rows, or start in another folder"
            )

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """Return Transformers' output, with `train_loss` averaged over all steps, those before a resume included."""
        resumed_at = self._initial_global_step
        self._restore_once()  # a checkpoint of the last step runs no epoch
        if "total_loss" in self._resumed:
            self._initial_global_step = 0
        try:
            return super()._finalize_training(trial, num_train_samples, start_time)
        finally:
            self._initial_global_step = resumed_at

    @property
    def _progress_file(self) -> str:
        return f"balora_trainer_{self.args.process_index}.safetensors"

    def _progress(self) -> dict[str, Tensor]:
        """Return the state that this process saves beside Transformers' own."""
        return {
            "loss_since_log": self._tr_loss.detach().cpu().clone(),
            "total_loss": torch.tensor(self._total_loss_scalar, dtype=torch.float64),
            "rows_per_step": torch.tensor(self.get_total_train_batch_size(self.args)),
            "last_logged_step": torch.tensor(self._globalstep_last_logged),
            "epoch_began_with": self._epoch_began_with,
            "train_seconds": torch.tensor(time.perf_counter() - self._began, dtype=torch.float64),
        }

    def _restore_progress(self, progress: dict[str, Tensor]) -> None:
        """Restore the state that `_progress` returned; subclasses restore what they added."""
        self._tr_loss = progress["loss_since_log"].to(self._tr_loss)
        self._total_loss_scalar = float(progress.get("total_loss", self._total_loss_scalar))
        self._globalstep_last_logged = int(progress["last_logged_step"])

    def _restore_once(self) -> None:
        if self._resumed and not self._restored:
            self._restored = True
            self._restore_progress(self._resumed)

    def _run_epoch(self, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        checkpoint = kwargs["resume_from_checkpoint"]
        if checkpoint is not None and kwargs["epoch"] == kwargs["epochs_trained"]:
            self._restore_once()
            if kwargs["steps_trained_in_current_epoch"] == 0:
                self._load_rng_state(checkpoint)
            elif self._resumed:
                # Samplers draw the epoch's order from the global generator again. Transformers restores the
                # generator's state at the checkpoint after skipping the earlier batches.
                torch.set_rng_state(self._resumed["epoch_began_with"])
        self._epoch_began_with = torch.get_rng_state()
        super()._run_epoch(**kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        write_tensors(Path(output_dir) / self._progress_file, self._progress())

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._saving else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._saving:  # uploaded only after it is renamed
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        unfinished, checkpoint = folder / UNFINISHED / name, folder / name
        self._saving = True
        try:
            with report_full_disk(folder):
                super()._save_checkpoint(model, trial)
                if self.state.best_model_checkpoint == str(unfinished):
                    self.state.best_model_checkpoint = str(checkpoint)
                    if self.args.should_save:
                        self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_manifest(unfinished)
                    move_into_place(unfinished, checkpoint)
                self.accelerator.wait_for_everyone()
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        finally:
            self._saving = False
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder, self.args.save_total_limit, [checkpoint] if best is None else [checkpoint, Path(best)])
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
