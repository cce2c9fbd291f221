"""`ReliableTrainerMixin`: a policy for non-finite losses and gradients, on top of exact resuming.

The policy `nonfinite` is `stop`, or `skip`: the optimizer step of that micro-batch is left out, as loss scaling does.
Gradients are set to `None`, so that weights, moments and weight decay do not change, while schedule and data advance.
In both cases the batch is saved for inspection.
"""

from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from balora.errors import BALoraError, NonFiniteLossError
from balora.training.evaluation import EvaluationMixin
from balora.training.resumable import ResumableTrainerMixin
from balora.utils.files import write_tensors

STOP, SKIP = "stop", "skip"
#: Consecutive skipped steps after which `skip` stops too, since nothing is learned any more.
MAX_CONSECUTIVE_SKIPS = 10
NONFINITE_FOLDER = "nonfinite"
#: Number of dataset rows that are searched for the rows of a batch.
MAX_ROWS_SEARCHED = 100_000


class ReliableTrainerMixin(EvaluationMixin, ResumableTrainerMixin):
    """Mixin for trainers of Transformers and TRL: exact resuming, evaluation on all rows, no step that is not finite.

    A micro-batch with a non-finite loss, or all of a step with a non-finite gradient, are saved to
    `output_dir/nonfinite/step-N.safetensors`: the model's inputs, `loss`, and `rows`, their indices in the training
    set, −1 if not found.

    Attributes:
        nonfinite: `stop`, or `skip` to leave out the step and log `skipped_steps`; ten in a row stop.
        skipped_steps: Number of steps left out so far.

    Raises:
        BALoraError: If an epoch has no step, since `dataloader_drop_last` drops its only batch.
        NonFiniteLossError: During training, if the policy stops, or a trained weight becomes non-finite.
    """

    nonfinite: str = STOP
    skipped_steps: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._skipped_in_a_row = 0
        self._micro_batches: list[tuple[dict[str, Any], Tensor]] = []  # of the current step, each with its loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train with the policy.

        Raises:
            BALoraError: If `nonfinite` is unknown, or `skip` is used under DeepSpeed, which manages gradients itself.
        """
        if self.nonfinite not in (STOP, SKIP):
            raise BALoraError(f"nonfinite: unknown {self.nonfinite!r}; use {STOP} or {SKIP}")
        if self.nonfinite == SKIP and self.is_deepspeed_enabled:
            raise BALoraError(f"nonfinite: steps cannot be skipped under DeepSpeed; use {STOP}")
        self.skipped_steps = self._skipped_in_a_row = 0
        self._micro_batches = []
        return super().train(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader:
        """Return the training batches.

        Raises:
            BALoraError: If there is none.
        """
        if isinstance(self.train_dataset, Sized) and not isinstance(self.train_dataset, IterableDataset):
            batch = self._train_batch_size * self.args.world_size
            check_first_batch(len(self.train_dataset), batch, drop_last=self.args.dataloader_drop_last)
        return super().get_train_dataloader()

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run one micro-batch, and check its loss."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._micro_batches.append((inputs, loss))
        if self.nonfinite == STOP and not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}{self._loss_summary()}")
        return loss

    def _loss_summary(self) -> str:
        """Return a summary of the step's loss components for the error message; empty if unknown."""
        return ""

    def _record_step(self, *, finite: bool) -> None:
        """Hook that runs before each optimizer step; `finite` is whether all of its losses were finite."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Apply the policy here, where a step's gradient is complete and the optimizer has not run."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite_loss = self.nonfinite == STOP or not self._on_any_process(
            not all(torch.isfinite(loss) for _, loss in self._micro_batches)
        )
        # Loss scaling overflows by design now and then, and skips such steps itself.
        checked = norm is not None and self.accelerator.scaler is None
        finite = finite_loss and (not checked or bool(torch.isfinite(torch.as_tensor(norm))))
        self._record_step(finite=finite_loss)
        if not finite:
            if self.nonfinite == STOP:
                self._stop(f"the loss is finite, but its gradient is not (norm {float(norm)})")
            self._skip_step(model)
            norm = None
        else:
            self._skipped_in_a_row = 0
        self._micro_batches = []
        return norm

    def _skip_step(self, model: nn.Module) -> None:
        self._skipped_in_a_row += 1
        self.skipped_steps += 1
        if self._skipped_in_a_row == MAX_CONSECUTIVE_SKIPS:
            self._stop(
                f"in {MAX_CONSECUTIVE_SKIPS} steps, one after the other, the loss or its gradient was not finite"
            )
        self._save_batches()
        # Optimizers skip parameters without a gradient, including their moments and weight decay.
        model.zero_grad(set_to_none=True)

    def _on_any_process(self, here: bool) -> bool:
        if self.args.world_size == 1:
            return here
        return bool(self.accelerator.gather(torch.tensor([int(here)], device=self.args.device)).any())

    def _stop(self, what: str) -> None:
        step = self.state.global_step + 1
        paths, rows = self._save_batches()
        where = f", rows {', '.join(map(str, rows))} of the training set" if rows else ""
        raise NonFiniteLossError(
            f"step {step}: {what}; training stopped, and the checkpoints in {self.args.output_dir} are from before. "
            f"The batch is saved in {paths[0]}{where}. Lower learning_rate, look for an invalid row, or set "
            f"nonfinite: {SKIP}"
        )

    def _save_batches(self) -> tuple[list[Path], list[int]]:
        """Save the step's micro-batches with a non-finite loss, else all; return the paths and dataset rows."""
        bad = [number for number, (_, loss) in enumerate(self._micro_batches) if not torch.isfinite(loss)]
        paths, found = [], []
        for number in bad or range(len(self._micro_batches)):
            inputs, loss = self._micro_batches[number]
            tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            rows = find_rows(self.train_dataset, tensors)
            if rows is not None:
                found += [row for row in rows.tolist() if row >= 0]
                tensors["rows"] = rows
            part = f"-{number + 1}" if self.args.gradient_accumulation_steps > 1 else ""
            process = f"-process-{self.args.process_index}" if self.args.world_size > 1 else ""
            name = f"step-{self.state.global_step + 1}{part}{process}.safetensors"
            paths.append(Path(self.args.output_dir) / NONFINITE_FOLDER / name)
            tensors["loss"] = loss
            write_tensors(paths[-1], {key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        return paths, sorted(set(found))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise NonFiniteLossError(
                    f"step {self.state.global_step}: {name} is no longer finite; no checkpoint was written, and "
                    f"those in {self.args.output_dir} are from before. Lower learning_rate"
                )
        super()._save_checkpoint(model, trial)

    def _progress(self) -> dict[str, Tensor]:
        skipped = torch.tensor([self.skipped_steps, self._skipped_in_a_row])
        return {**super()._progress(), "skipped": skipped}

    def _restore_progress(self, progress: dict[str, Tensor]) -> None:
        super()._restore_progress(progress)
        self.skipped_steps, self._skipped_in_a_row = progress["skipped"].tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the number of skipped steps to log entries that report the training loss."""
        if "loss" in logs and self.nonfinite == SKIP:
            logs["skipped_steps"] = self.skipped_steps
        super().log(logs, start_time)


def check_first_batch(rows: int, batch: int, *, drop_last: bool) -> None:
    """Check that an epoch has a step.

    Args:
        rows: Number of training rows, after packing.
        batch: Rows of a batch on all devices.
        drop_last: Whether a batch that is not full is dropped.

    Raises:
        BALoraError: If every row is dropped.
    """
    if drop_last and rows < batch:
        raise BALoraError(
            f"dataloader_drop_last: {rows} training rows do not fill a batch of {batch}, so every row is dropped and "
            "there is no step; leave it out, or use a smaller per_device_train_batch_size"
        )


def find_rows(dataset: Any, inputs: dict[str, Tensor]) -> Tensor | None:
    """Find the indices of a batch's rows in a dataset by their tokens.

    Args:
        dataset: The trainer's training dataset.
        inputs: Model inputs, `input_ids` and `attention_mask` `(B, S)`.

    Returns:
        `(B,)`, indices from 0, −1 for a row that is not among the first 100,000; `None` for a dataset without indices
        or tokens.
    """
    ids = inputs.get("input_ids")
    if ids is None or not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
        return None
    if not len(dataset) or "input_ids" not in dataset[0]:
        return None
    wanted: dict[tuple[int, ...], list[int]] = {}
    for place, key in enumerate(_tokens(ids, inputs.get("attention_mask"))):
        wanted.setdefault(key, []).append(place)
    rows = torch.full((len(ids),), -1)
    for number in range(min(len(dataset), MAX_ROWS_SEARCHED)):
        row = dataset[number]
        mask = row.get("attention_mask")
        own = torch.as_tensor(row["input_ids"]).unsqueeze(0)
        key = _tokens(own, None if mask is None else torch.as_tensor(mask).unsqueeze(0))[0]
        places = wanted.get(key)
        if places:
            rows[places.pop(0)] = number
    return rows


def _tokens(ids: Tensor, mask: Tensor | None) -> list[tuple[int, ...]]:
    kept = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return [tuple(row[own].tolist()) for row, own in zip(ids.cpu(), kept.cpu(), strict=True)]
