"""`BALoraTrainer`: Transformers' `Trainer` with the objective's schedules, normalization and logging."""

import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import has_length

from balora.adapters.model_checks import check_unadapted
from balora.config import as_balora_config
from balora.errors import BALoraError
from balora.model.base import BALoraModel
from balora.model.build import get_balora_model
from balora.model.drift import measure_drift
from balora.teacher_cache.store import SUFFIX
from balora.training.callbacks import ScheduleCallback
from balora.training.collator import AdapterInputCollator, adapter_inputs
from balora.training.loraplus import loraplus_optimizer
from balora.training.reliable import ReliableTrainerMixin
from balora.training.sharded import prepare_sharding
from balora.utils.batches import count_rows
from balora.utils.distributed import gather_adapter_state


class ObjectiveTrainerMixin(ReliableTrainerMixin):
    """Features that `BALoraTrainer` and `BALoraSFTTrainer` add to the trainers of Transformers and TRL.

    Logs, beside `loss`, each unweighted component as `loss_task`, `loss_consistency`, `loss_diversity` and
    `loss_spectral` (means over the steps since the last log that computed them), and each current λ as `weight_…`.
    A mixture of experts adds its router loss as `loss_router`, weighted as in its own forward; SeLoRA adds
    `loss_semantic`, the bias path `loss_bias_path`, task alignment `loss_alignment`. SeLoRA needs a dataset column
    `sentence_embeds` (`balora.data.add_sentence_embeds`), task adapters a column `task_ids`; any collator works for
    other columns.

    After a kill at any time, `train(resume_from_checkpoint=True)` resumes, on a CPU bit for bit: checkpoints are
    written atomically, and damaged ones are skipped. A batch with a non-finite loss or gradient is saved to
    `output_dir/nonfinite`.

    Attributes:
        drift_batches: Number of batches on which drift is measured after training, for the model card; 0 for none.
        nonfinite: Policy for a non-finite loss or gradient: `stop`, or `skip` to leave out the step, log the number of
            such steps (`skipped_steps`), and stop after ten in a row.
        train_seconds: Seconds of training so far, those before a resume included.

    Raises:
        BALoraError: If a loss function or label smoothing would replace the model's objective. During training, if
            the disk is full, or the checkpoint to resume from is damaged.
        NonFiniteLossError: During training, if `nonfinite` stops, or a trained weight becomes non-finite.
    """

    drift_batches: int = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor or self.compute_loss_func is not None:
            raise BALoraError(
                "label_smoothing_factor and compute_loss_func replace the loss that the objective adds its terms to; "
                "leave them out"
            )
        self.model_accepts_loss_kwargs = True
        self.add_callback(ScheduleCallback())
        for name in adapter_inputs(self.model.balora_config):
            self.data_collator = AdapterInputCollator(self.data_collator, name)
        self._tokens_in_batch: Tensor | None = None
        self._pending: dict[str, Tensor] = {}  # components of the current step
        self._sums: dict[str, Tensor] = {}  # since the last log
        self._steps: dict[str, int] = {}

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the adapter's columns too, which are not arguments of the base model's forward."""
        super()._set_signature_columns_if_needed()
        wanted = adapter_inputs(self.model.balora_config)
        self._signature_columns += [name for name in wanted if name not in self._signature_columns]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Build the optimizer of the arguments, for the method `lora+` LoRA+'s, unless the trainer was given one."""
        if self.optimizer is None and self.model.balora_config.described.loraplus:
            self.optimizer = loraplus_optimizer(self.model, self.args)
        return super().create_optimizer(model)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Fetch the batches of a step, and count their tokens without padding, the divisor of the regularizers."""
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
        """Return the model's loss; in training also record its components."""
        if not self.model.training:
            # Without the item count every model returns the mean over this batch.
            return Trainer.compute_loss(self, model, inputs, return_outputs)
        if self._tokens_in_batch is not None:
            inputs = {**inputs, "num_tokens_in_batch": self._tokens_in_batch}
        loss, outputs = Trainer.compute_loss(self, model, inputs, True, num_items_in_batch)
        for name, value in outputs.components.items():
            self._pending[name] = self._pending.get(name, 0) + value
        return (loss, outputs) if return_outputs else loss

    def _loss_summary(self) -> str:
        return f" ({', '.join(f'{name} {value.item():.4g}' for name, value in self._pending.items())})"

    def _record_step(self, *, finite: bool) -> None:
        for name, value in self._pending.items() if finite else ():
            self._sums[name] = self._sums.get(name, 0) + value
            self._steps[name] = self._steps.get(name, 0) + 1
        self._pending = {}

    def _progress(self) -> dict[str, Tensor]:
        sums = {f"sum.{name}": value.detach().cpu().clone() for name, value in self._sums.items()}
        steps = {f"steps.{name}": torch.tensor(count) for name, count in self._steps.items()}
        sizes = {f"features.{file.parent.name}": torch.tensor(file.stat().st_size) for file in self._feature_files()}
        return {**super()._progress(), **sums, **steps, **sizes}

    def _restore_progress(self, progress: dict[str, Tensor]) -> None:
        super()._restore_progress(progress)
        named = {tuple(key.split(".", 1)): value for key, value in progress.items() if "." in key}
        self._sums = {name: value.to(self.args.device) for (kind, name), value in named.items() if kind == "sum"}
        self._steps = {name: int(value) for (kind, name), value in named.items() if kind == "steps"}
        # Features written after the checkpoint, perhaps partially, are written again by the same batches.
        for file in self._feature_files():
            size = named.get(("features", file.parent.name), torch.tensor(0))
            os.truncate(file, min(int(size), file.stat().st_size))

    def _feature_files(self) -> list[Path]:
        """Return this process's files of cached teacher features in the run's folder."""
        return list(self._features.glob(f"*/{self.args.process_index}{SUFFIX}"))

    @property
    def _features(self) -> Path:
        return Path(self.args.output_dir) / "teacher_features"

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Prepare the model for sharding, then run the parent's preparation, which shards it."""
        prepare_sharding(self)
        return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; under FSDP and DeepSpeed only the adapter is gathered, and saved unsharded."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        state = gather_adapter_state(self.model)
        if self.args.should_save:
            self._save(output_dir or self.args.output_dir, state_dict=state)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add components and weights to log entries that report the training loss."""
        if "loss" in logs:
            for name, total in self._sums.items():
                total = self.accelerator.reduce(total, reduction="sum")
                logs[f"loss_{name}"] = total.item() / self._steps[name]
            for name, weight in self.model.current_weights().items():
                logs[f"weight_{name}"] = weight
            self._sums, self._steps = {}, {}
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as the parent class does, then measure drift on a few batches for the model card."""
        self._pending, self._sums, self._steps = {}, {}, {}
        config = self.model.balora_config
        classifies, rows = config.task_type == "SEQ_CLS", self._repeats_rows() and bool(config.consistency_weight)
        caches = classifies or bool(config.anchor_weight) or (config.task_type == "CAUSAL_LM" and rows)
        if caches and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # Features are stored in the run's folder, so that a resumed run reads the same ones.
            if not resume_from_checkpoint and self.is_world_process_zero():
                shutil.rmtree(self._features, ignore_errors=True)
            which = {} if classifies else {"rows": rows}
            self.model.cache_teacher(self._features, writer=str(self.args.process_index), **which)
        elif caches:
            self.model.teacher_cache = None  # created before it was known that the model is sharded
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        if caches and self.model.teacher_cache is not None and self.state.global_step >= self.state.max_steps:
            self.model.teacher_cache.forget()
        if self.drift_batches:
            self._measure_drift()
        return output

    def _repeats_rows(self) -> bool:
        """Return whether training reads the training rows more than once."""
        if not has_length(self.train_dataset):
            return False
        args = self.args
        if args.max_steps <= 0:
            return args.num_train_epochs > 1
        read = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return read > len(self.train_dataset)

    def _measure_drift(self) -> None:
        """Measure drift on the first batches of the evaluation set, or of the training rows without one."""
        dataset, source = self.eval_dataset, "the evaluation set"
        if dataset is None:
            dataset, source = self.train_dataset, "the training set, since there was no evaluation set"
        elif isinstance(dataset, dict):
            name, dataset = next(iter(dataset.items()))
            source = f"the evaluation set `{name}`"
        batches = list(islice(self.get_eval_dataloader(dataset), self.drift_batches))
        count = sum(count_rows(batch) or 0 for batch in batches)
        self.model.drift = measure_drift(self.model, batches)
        self.model.drift_rows = f"{count:,} rows of {source}"


class BALoraTrainer(ObjectiveTrainerMixin, Trainer):
    """Transformers' `Trainer` for a `BALoraModel`; takes the same arguments, and `peft_config`.

    With `peft_config`, a `BALoraConfig` or PEFT's `LoraConfig`, `model` is a pretrained model, and the trainer builds
    the `BALoraModel`, after it has set the seed of its arguments. `processing_class` is then also the tokenizer of
    self-anchors and counterfactual teacher.
    """

    __doc__ += ObjectiveTrainerMixin.__doc__.split("\n", 1)[1]

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | None = None,
        args: TrainingArguments | None = None,
        *further: Any,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        check_model(model, peft_config)
        if isinstance(model, str):
            raise BALoraError(
                f"model: {model!r} is a name, which does not say for which task it is loaded; give the model of "
                "AutoModelForSequenceClassification.from_pretrained, or of the class for your task"
            )
        if peft_config is not None:
            set_seed(args.seed if args is not None else TrainingArguments.seed)
            tokenizer = tokenizer_of(kwargs.get("processing_class"))
            model = get_balora_model(model, peft_config, tokenizer=tokenizer)
        super().__init__(model, args, *further, **kwargs)


def tokenizer_of(processing_class: Any) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer that a trainer was given, by itself or in a processor; `None` without one."""
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None


def check_model(model: Any, peft_config: PeftConfig | None) -> None:
    """Check that a trainer is given a `BALoraModel`, or a model without an adapter and a configuration.

    Raises:
        BALoraError: If it has neither, or both.
    """
    if peft_config is not None:
        as_balora_config(peft_config)
        if isinstance(model, nn.Module):
            check_unadapted(model)
    elif model is not None and not isinstance(model, BALoraModel):
        kind = repr(model) if isinstance(model, str) else type(model).__name__
        raise BALoraError(
            f"model: {kind} is not a model of get_balora_model; build one, or give the base model and "
            "peft_config=BALoraConfig(…)"
        )
