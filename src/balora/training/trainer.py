"""`BALoraTrainer`: Transformers' `Trainer` that schedules, normalises and logs the objective's parts."""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from balora.config import SELORA, BALoraConfig
from balora.errors import BALoraError
from balora.model.drift import measure_drift
from balora.teacher_cache.store import SUFFIX
from balora.training.callbacks import ScheduleCallback
from balora.training.reliable import ReliableTrainerMixin
from balora.training.sharded import prepare_sharding
from balora.utils.distributed import whole_state

#: Inputs of ours beside the base model's, one for each row, and what to say where a row has none.
ROW_INPUTS = {
    "sentence_embeds": "selora reads one for each; balora.data.add_sentence_embeds makes the column from texts",
    "task_ids": "each goes through its own task's adapter; give the places of the tasks in task_names, from 0",
}


def row_inputs(config: BALoraConfig) -> list[str]:
    """Those of `ROW_INPUTS` that the model of this configuration reads."""
    wanted = {"sentence_embeds": config.method == SELORA, "task_ids": config.task_names is not None}
    return [name for name in ROW_INPUTS if wanted[name]]


class RowInputCollator:
    """Sets an input of our own aside from a collator that knows nothing of it.

    Args:
        collate: The collator.
        name: Of the input, one of `ROW_INPUTS`.
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]], name: str) -> None:
        self.collate = collate
        self.name = name

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """As the collator's, with the input `(B, ...)`."""
        if not all(self.name in row for row in rows):
            raise BALoraError(f"{self.name}: a row has none, and {ROW_INPUTS[self.name]}")
        values = torch.stack([torch.as_tensor(row[self.name]) for row in rows])
        rest = [{name: value for name, value in row.items() if name != self.name} for row in rows]
        return {**self.collate(rest), self.name: values}


class ObjectiveTrainerMixin(ReliableTrainerMixin):
    """What `BALoraTrainer` and `BALoraSFTTrainer` add to their libraries' trainers.

    Logs, beside `loss`, each unweighted component as `loss_task`, `loss_consistency`, `loss_diversity` and
    `loss_spectral` (means over the steps since the last log that computed them), and each present λ as `weight_…`. A
    mixture of experts that balances its routers adds `loss_router`, as its own forward weighs it, and SeLoRA
    `loss_semantic`; the bias path and the alignment of tasks add `loss_bias_path` and `loss_alignment`. SeLoRA's rows
    have a column `sentence_embeds` (`balora.data.add_sentence_embeds`), those of several tasks a column `task_ids`,
    whatever the collator makes of the others.

    Killed at any instant, `train(resume_from_checkpoint=True)` goes on, on a CPU to the same bits: checkpoints are
    written whole, and one that was damaged is passed over for the one before. A batch with a loss or a gradient that
    is not finite is kept in `output_dir/nonfinite`.

    Attributes:
        drift_batches: Batches on which drift is measured after training, for the model card; 0 measures none.
        nonfinite: At a loss or gradient that is not finite, `stop`; or `skip`: leave the step out, log how many were
            (`skipped_steps`), and stop at ten in a row.
        train_seconds: Seconds of training behind the present weights, those before a resume included.

    Raises:
        BALoraError: If a loss function or label smoothing is asked for beside the model's own objective. During
            training, if the disk is full, or a checkpoint to go on from is damaged.
        NonFiniteLossError: During training, where `nonfinite` stops, or a trained weight is no longer finite.
    """

    drift_batches: int = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor or self.compute_loss_func is not None:
            raise BALoraError(
                "label_smoothing_factor and compute_loss_func replace the loss that the model's objective is made of; "
                "leave them out"
            )
        self.model_accepts_loss_kwargs = True
        self.add_callback(ScheduleCallback())
        for name in row_inputs(self.model.balora_config):
            self.data_collator = RowInputCollator(self.data_collator, name)
        self._tokens_in_batch: Tensor | None = None
        self._pending: dict[str, Tensor] = {}  # of this step
        self._sums: dict[str, Tensor] = {}  # since the last log
        self._steps: dict[str, int] = {}

    def _set_signature_columns_if_needed(self) -> None:
        """Also keep our own inputs, which the base model's forward has no argument for."""
        super()._set_signature_columns_if_needed()
        wanted = row_inputs(self.model.balora_config)
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Also count the tokens that are not padding, over which the token-mean regularizers are means."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._tokens_in_batch = None
        if num_items is not None:
            counts = [self.model.counts_of(batch, batch["labels"]) for batch in batches]
            tokens = torch.tensor(sum(int(count.tokens) for count in counts), device=device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                tokens = self.accelerator.gather(tokens).sum()
            self._tokens_in_batch = tokens
        return batches, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The model's own loss; in training, note its components."""
        if not self.model.training:
            # Without the count the loss is a mean over this batch, which every model can give.
            return Trainer.compute_loss(self, model, inputs, return_outputs)
        if self._tokens_in_batch is not None:
            inputs = {**inputs, "num_tokens_in_batch": self._tokens_in_batch}
        loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
        for name, value in outputs.components.items():
            self._pending[name] = self._pending.get(name, 0) + value
        return (loss, outputs) if return_outputs else loss

    def _parts(self) -> str:
        return f" ({', '.join(f'{name} {value.item():.4g}' for name, value in self._pending.items())})"

    def _note_step(self, *, finite: bool) -> None:
        for name, value in self._pending.items() if finite else ():
            self._sums[name] = self._sums.get(name, 0) + value
            self._steps[name] = self._steps.get(name, 0) + 1
        self._pending = {}

    def _progress(self) -> dict[str, Tensor]:
        sums = {f"sum.{name}": value.detach().cpu().clone() for name, value in self._sums.items()}
        steps = {f"steps.{name}": torch.tensor(count) for name, count in self._steps.items()}
        sizes = {f"features.{file.parent.name}": torch.tensor(file.stat().st_size) for file in self._feature_files()}
        return {**super()._progress(), **sums, **steps, **sizes}

    def _take_up(self, progress: dict[str, Tensor]) -> None:
        super()._take_up(progress)
        named = {tuple(key.split(".", 1)): value for key, value in progress.items() if "." in key}
        self._sums = {name: value.to(self.args.device) for (kind, name), value in named.items() if kind == "sum"}
        self._steps = {name: int(value) for (kind, name), value in named.items() if kind == "steps"}
        # What a batch wrote after the checkpoint, perhaps in part, it shall write again whole.
        for file in self._feature_files():
            size = named.get(("features", file.parent.name), torch.tensor(0))
            os.truncate(file, min(int(size), file.stat().st_size))

    def _feature_files(self) -> list[Path]:
        """Where this process keeps the teacher's features, in the run's folder."""
        return list(self._features.glob(f"*/{self.args.process_index}{SUFFIX}"))

    @property
    def _features(self) -> Path:
        return Path(self.args.output_dir) / "teacher_features"

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """As the library's; weights are about to be taken apart where a launcher asked for that."""
        prepare_sharding(self)
        return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the library's; under FSDP and DeepSpeed the adapter alone is gathered, in a form that loads anywhere."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state(self.model)
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state_dict=state)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add components and weights to the rows that report training loss."""
        if "loss" in logs:
            for name, total in self._sums.items():
                total = self.accelerator.reduce(total, reduction="sum")
                logs[f"loss_{name}"] = total.item() / self._steps[name]
            for name, weight in self.model.current_weights().items():
                logs[f"weight_{name}"] = weight
            self._sums, self._steps = {}, {}
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the library's trainer does, then measure drift on a few batches for the model card."""
        self._pending, self._sums, self._steps = {}, {}, {}
        classifies = self.model.balora_config.task_type == "SEQ_CLS"
        if classifies and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # In the run's folder, so that a resumed run reads the very features that it had.
            if not resume_from_checkpoint and self.is_world_process_zero():
                shutil.rmtree(self._features, ignore_errors=True)
            self.model.cache_teacher(self._features, writer=str(self.args.process_index))
        elif classifies:
            self.model.teacher_cache = None  # made before it was known that processes gather the weights together
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if classifies and self.model.teacher_cache is not None and self.state.global_step >= self.state.max_steps:
            self.model.teacher_cache.forget()
        if self.drift_batches:
            dataset = self.eval_dataset if self.eval_dataset is not None else self.train_dataset
            dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
            batches = islice(self.get_eval_dataloader(dataset), self.drift_batches)
            self.model.drift = measure_drift(self.model, batches)
        return output


class BALoraTrainer(ObjectiveTrainerMixin, Trainer):
    """Transformers' `Trainer` for a `BALoraModel`; takes the same arguments."""

    __doc__ += ObjectiveTrainerMixin.__doc__.split("\n", 1)[1]
