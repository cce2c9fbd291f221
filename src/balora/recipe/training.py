"""Settings of training, under the names of Transformers' `TrainingArguments`."""

from dataclasses import dataclass, field
from typing import Any, Literal

from balora.config.ranges import Count, NonNegative, Positive
from balora.errors import BALoraError


@dataclass
class Training:
    """Training, by the names of Transformers' TrainingArguments."""

    learning_rate: Positive = 2e-4
    """Peak learning rate."""
    num_train_epochs: Positive = 1.0
    """Epochs, unless max_steps is given."""
    max_steps: int = -1
    """Optimizer steps; -1 or null for num_train_epochs."""
    per_device_train_batch_size: Count = 8
    """Rows per device and micro-batch."""
    gradient_accumulation_steps: Count = 1
    """Micro-batches per step."""
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    """Order of the rows: random, sequential, or group_by_length, which batches rows of similar length."""
    packing: bool = False
    """Join short rows of a language model's text up to max_length (TRL's packing)."""
    per_device_eval_batch_size: Count = 16
    """Rows per device when evaluating."""
    lr_scheduler_type: str = "cosine"
    """Learning-rate schedule."""
    warmup_steps: NonNegative = 0.03
    """Steps in which the rate rises; below 1, the share of training."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    max_grad_norm: NonNegative = 1.0
    """Gradient clipping."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite, stop; or skip: leave the step out, and stop at ten in a row. The batch
    is kept in the run's folder, under `nonfinite`."""
    bf16: bool = False
    """bfloat16 autocast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logging_steps: Count = 10
    """Steps between rows of the loss curves."""
    save_steps: Count = 500
    """Steps between checkpoints."""
    training_arguments: dict[str, Any] = field(default_factory=dict)
    """Further fields of Transformers' TrainingArguments."""

    def check_training(self) -> None:
        """Validate the number of steps.

        Raises:
            BALoraError: If it is 0, with which Transformers trains whole epochs, or below -1.
        """
        if self.max_steps < 1 and self.max_steps != -1:
            raise BALoraError(
                f"max_steps: {self.max_steps} is no number of steps; use at least 1, or -1 (or null) to train for "
                "num_train_epochs"
            )
