"""`ReliableTrainerMixin`: what happens at a loss or a gradient that is not finite, on top of exact resuming.

`nonfinite` says which of two: `stop`; or `skip`, where the whole optimizer step that the micro-batch belongs to is
left out, as loss scaling does it. Without a gradient no weight, moment or decay moves, while schedule and data go on.
Either way the batch is kept for who wants to look.
"""

from collections.abc import Sized
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from balora.errors import BALoraError, NonFiniteLossError
from balora.training.resumable import ResumableTrainerMixin
from balora.utils.files import write_tensors

STOP, SKIP = "stop", "skip"
#: Steps left out one after the other at which even `skip` stops: nothing is learned any more.
MOST_IN_A_ROW = 10
FOLDER = "nonfinite"
#: Rows of a data set that are searched for those of a batch.
SEARCHED = 100_000


class ReliableTrainerMixin(ResumableTrainerMixin):
    """Before a trainer of Transformers or TRL: `ResumableTrainerMixin`, and a policy for what is not finite.

    A batch with a loss that is not finite, and all of a step whose gradient is not, are kept in
    `output_dir/nonfinite/step-N.safetensors`: the model's inputs, `loss`, and as `rows` their places in the training
    set, counted from 0, −1 where it was not found there.

    Attributes:
        nonfinite: `stop`, or `skip` to leave the step out and go on, with `skipped_steps` logged; ten in a row stop.
        skipped_steps: Those left out so far.

    Raises:
        NonFiniteLossError: During training, where the policy stops, or a trained weight is no longer finite.
    """

    nonfinite: str = STOP
    skipped_steps: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._skipped_in_a_row = 0
        self._micro_batches: list[tuple[dict[str, Any], Tensor]] = []  # of this step, each with its loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's.

        Raises:
            BALoraError: If `nonfinite` is neither, or DeepSpeed, which keeps gradients to itself, is to skip.
        """
        if self.nonfinite not in (STOP, SKIP):
            raise BALoraError(f"nonfinite: unknown {self.nonfinite!r}; use {STOP} or {SKIP}")
        if self.nonfinite == SKIP and self.is_deepspeed_enabled:
            raise BALoraError(f"nonfinite: under DeepSpeed a step cannot be left out from here; use {STOP}")
        self.skipped_steps = self._skipped_in_a_row = 0
        self._micro_batches = []
        return super().train(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._micro_batches.append((inputs, loss))
        if self.nonfinite == STOP and not torch.isfinite(loss):
            self._stop(f"the loss is {loss.item()}{self._parts()}")
        return loss

    def _parts(self) -> str:
        """What this step's loss is made of, for the error, where the trainer knows."""
        return ""

    def _note_step(self, *, finite: bool) -> None:
        """Told of each step before the optimizer takes it, by whether all of its losses were finite."""

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Where a step's gradient is complete and the optimizer has not seen it."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite_loss = self.nonfinite == STOP or not self._on_any_process(
            not all(torch.isfinite(loss) for _, loss in self._micro_batches)
        )
        # Loss scaling overflows now and then by design, and leaves such steps out by itself.
        checked = norm is not None and self.accelerator.scaler is None
        finite = finite_loss and (not checked or bool(torch.isfinite(torch.as_tensor(norm))))
        self._note_step(finite=finite_loss)
        if not finite:
            if self.nonfinite == STOP:
                self._stop(f"the loss is finite and its gradient is not (norm {float(norm)})")
            self._leave_out(model)
            norm = None
        else:
            self._skipped_in_a_row = 0
        self._micro_batches = []
        return norm

    def _leave_out(self, model: nn.Module) -> None:
        self._skipped_in_a_row += 1
        self.skipped_steps += 1
        if self._skipped_in_a_row == MOST_IN_A_ROW:
            self._stop(f"in {MOST_IN_A_ROW} steps, one after the other, the loss or its gradient was not finite")
        self._keep()
        # Optimizers pass over a parameter that has no gradient, its moments and its decay included.
        model.zero_grad(set_to_none=True)

    def _on_any_process(self, here: bool) -> bool:
        if self.args.world_size == 1:
            return here
        return bool(self.accelerator.gather(torch.tensor([int(here)], device=self.args.device)).any())

    def _stop(self, what: str) -> None:
        step = self.state.global_step + 1
        paths, rows = self._keep()
        where = f", rows {', '.join(map(str, rows))} of the training set" if rows else ""
        raise NonFiniteLossError(
            f"step {step}: {what}; training stopped and checkpoints in {self.args.output_dir} are from before. The "
            f"batch is kept in {paths[0]}{where}. Lower learning_rate, look for a bad row, or set nonfinite: {SKIP}"
        )

    def _keep(self) -> tuple[list[Path], list[int]]:
        """Write this step's micro-batches without a finite loss, or all if there are none; where, and which rows."""
        bad = [number for number, (_, loss) in enumerate(self._micro_batches) if not torch.isfinite(loss)]
        paths, found = [], []
        for number in bad or range(len(self._micro_batches)):
            inputs, loss = self._micro_batches[number]
            tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
            rows = rows_of(self.train_dataset, tensors)
            if rows is not None:
                found += [row for row in rows.tolist() if row >= 0]
                tensors["rows"] = rows
            part = f"-{number + 1}" if self.args.gradient_accumulation_steps > 1 else ""
            process = f"-process-{self.args.process_index}" if self.args.world_size > 1 else ""
            name = f"step-{self.state.global_step + 1}{part}{process}.safetensors"
            paths.append(Path(self.args.output_dir) / FOLDER / name)
            tensors["loss"] = loss
            write_tensors(paths[-1], {key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        return paths, sorted(set(found))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise NonFiniteLossError(
                    f"step {self.state.global_step}: {name} is no longer finite; no checkpoint was written, those in "
                    f"{self.args.output_dir} are from before. Lower learning_rate"
                )
        super()._save_checkpoint(model, trial)

    def _progress(self) -> dict[str, Tensor]:
        skipped = torch.tensor([self.skipped_steps, self._skipped_in_a_row])
        return {**super()._progress(), "skipped": skipped}

    def _take_up(self, progress: dict[str, Tensor]) -> None:
        super()._take_up(progress)
        self.skipped_steps, self._skipped_in_a_row = progress["skipped"].tolist()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the number of steps left out to the rows that report training loss."""
        if "loss" in logs and self.nonfinite == SKIP:
            logs["skipped_steps"] = self.skipped_steps
        super().log(logs, start_time)


def rows_of(dataset: Any, inputs: dict[str, Tensor]) -> Tensor | None:
    """Where a batch's rows stand in a data set, found by their tokens.

    Args:
        dataset: What a trainer was given to train on.
        inputs: The model's, `input_ids` and `attention_mask` `(B, S)`.

    Returns:
        `(B,)`, places from 0, −1 for a row that is not among the first 100,000; `None` where a data set has no places
        or no tokens.
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
    for number in range(min(len(dataset), SEARCHED)):
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
