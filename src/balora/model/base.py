"""The base of balora's models: an adapted model whose training forward holds the teacher pass and the objective.

Student, teacher and loss run inside one `forward`, so that whatever wraps the module (DDP, FSDP, autocast, a trainer)
sees one call. In evaluation mode, or without labels, it behaves as the PEFT model.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from balora.adapters import selora
from balora.adapters.adapted import AdaptedModel
from balora.adapters.assembly import load_adapted
from balora.adapters.bias_path import RandomState, random_state
from balora.adapters.ewc import ewc_penalty
from balora.adapters.selora import sentence_gates
from balora.adapters.task_adapters import TaskIds, alignment_term, task_routing
from balora.config import BALoraConfig
from balora.counterfactual import Swaps
from balora.errors import BALoraError
from balora.model.schedule import anchor_factor, schedules_of, weights_at

#: The model's class, by PEFT's task type; each subclass adds itself.
MODEL_CLASSES: dict[str, type["BALoraModel"]] = {}


@dataclass
class BALoraOutput(ModelOutput):
    """Output of a training forward.

    Attributes:
        loss: Scalar, task loss plus weighted regularizers.
        logits: The student's; `None` where the loss was computed from hidden states.
        components: Detached and unweighted: `task`, and each term of `balora.model.regularizers.TERMS` that was
            computed; multiplied by this micro-batch's share, so that they add up over an accumulated batch. `router`
            is what a mixture of experts adds to its own loss, coefficient included.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    components: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class BatchCounts:
    """Counts over a batch, or over the accumulated batch of which a forward sees a part.

    Attributes:
        items: Labelled items, over which the task loss is a mean; `None` if not counted.
        tokens: Tokens that are not padding (examples, in classification), over which the regularizers are; `None` if
            not counted.
    """

    items: Tensor | int | None
    tokens: Tensor | int | None


class BALoraModel(AdaptedModel):
    """Base class of the models of all tasks; built by `get_balora_model` or `from_pretrained`.

    A subclass names its task: `class BALoraModelForX(BALoraModel, PeftModelForX, task_type=TaskType.X)`.

    Attributes:
        swaps: The words that `counterfactual_words` exchanges; `None` until set.
        fisher: What `ewc_weight` weighs changes by (`balora.adapters.ewc.fisher_diagonals`); `None` until set, and not
            saved.
    """

    def __init_subclass__(cls, task_type: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if task_type is not None:
            MODEL_CLASSES[task_type] = cls

    def __init__(self, model: PreTrainedModel, config: BALoraConfig) -> None:
        super().__init__(model, config)
        self.swaps: Swaps | None = None
        self.fisher: dict[str, Tensor] | None = None
        self._progress: float | None = None
        self._step: int | None = None
        self._warned_of_progress = False
        self._warned_of_labels = False

    def set_swaps(self, swaps: Swaps) -> None:
        """Set the words that the teacher is averaged over; they are not saved with the model.

        Args:
            swaps: `balora.counterfactual.Swaps` of the words in `counterfactual_words` and of the model's tokenizer.

        Raises:
            BALoraError: If the configuration names no words, or the tokenizer knows none of them.
        """
        words = self.balora_config.counterfactual_words
        if words is None:
            raise BALoraError("counterfactual_words: not set in the configuration; name there which words to exchange")
        if swaps.is_empty:
            raise BALoraError(
                f"counterfactual_words: the tokenizer tells no words of {words} apart, so nothing would be exchanged; "
                "name words that it knows, or leave it out"
            )
        self.swaps = swaps

    def set_progress(self, progress: float, step: int | None = None) -> None:
        """Set the training progress before an optimizer step. Balora's trainers do so before every step.

        Args:
            progress: The share of training that is done, 0 to 1, for the schedules.
            step: Optimizer steps taken so far, which `anchor_every` above 1 counts by.
        """
        self._progress, self._step = progress, step

    def current_weights(self) -> dict[str, float]:
        """Return λ of each regularizer at the present progress, without the factor of `anchor_every`."""
        return weights_at(self.balora_config, self._progress)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_tokens_in_batch: Tensor | int | None = None,
        sentence_embeds: Tensor | None = None,
        task_ids: TaskIds | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the PEFT model's forward; in training mode with labels, compute the whole objective.

        Args:
            input_ids: `(B, S)`.
            attention_mask: `(B, S)`, 0 where there is padding; it also marks the tokens that the regularizers see.
            inputs_embeds: `(B, S, d)`, in place of ids.
            labels: The base model's labels. In training mode with labels the objective is computed.
            num_items_in_batch: Labelled items in the whole accumulated batch, as Transformers' `Trainer` counts them.
                If given, the task loss is a sum over this micro-batch divided by it.
            num_tokens_in_batch: Tokens that are not padding (examples, in classification) in the whole accumulated
                batch: this micro-batch's regularizers are then weighted by its share of them. If `None`, they are
                weighted by its share of the labelled items, as the task loss.
            sentence_embeds: `(B, sentence_dim)`, SeLoRA's sentence vector of each row.
            task_ids: The task of each row: indices into `task_names`, `(B,)`, or names, or one name for all rows. In
                evaluation `set_adapter(name)` may be used instead.
            **kwargs: The base model's further inputs.

        Returns:
            `BALoraOutput` in training with labels, else the base model's output.

        Raises:
            BALoraError: If SeLoRA does not get one sentence vector for each row, or another method gets any;
                likewise for tasks. Also if a trainer of TRL asks for token probabilities to make a loss of its own.
        """
        self._check_objective_is_used(labels, kwargs)
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        inputs = {name: value for name, value in named.items() if value is not None} | kwargs
        # In training the gates stay set after the forward: a backward with gradient checkpointing reads them again.
        rows = {**inputs, "labels": labels}
        with (
            sentence_gates(self, sentence_embeds, rows, keep=self.training),
            task_routing(self, task_ids, rows, keep=self.training),
        ):
            if not self.training or labels is None or "fused_lm_head" in kwargs:
                if num_items_in_batch is not None:
                    inputs["num_items_in_batch"] = num_items_in_batch
                return super().forward(labels=labels, **inputs)
            counts = BatchCounts(num_items_in_batch, num_tokens_in_batch)
            self._in_forward = True
            try:
                return self._objective(inputs, labels, self._weights_in_training(), counts)
            finally:
                self._in_forward = False

    def _check_objective_is_used(self, labels: Tensor | None, kwargs: dict[str, Any]) -> None:
        """Check that a training forward computes the objective, for a model with regularizers.

        Raises:
            BALoraError: If TRL's trainer computes the loss itself, from the probabilities that `fused_lm_head` asks
                for. A forward without labels is warned of once instead, since its output may serve another end.
        """
        own_objective = any(self.current_weights().values()) or self.balora_config.task_loss != "cross_entropy"
        if not (self.training and torch.is_grad_enabled() and own_objective):
            return
        if "fused_lm_head" in kwargs:
            raise BALoraError(
                "model: this trainer of TRL computes a loss of its own, which would train the model without its "
                "regularizers; use balora.training.sft.BALoraSFTTrainer in place of SFTTrainer, and with other "
                "trainers of TRL set the weights of all regularizers to 0"
            )
        if labels is None and not self._warned_of_labels:
            self._warned_of_labels = True
            warnings.warn(
                "balora: a training forward without labels computes no objective, so a loss made of its output trains "
                "without the regularizers; give labels, or set the weights of all regularizers to 0"
            )

    def counts_of(self, inputs: dict[str, Any], labels: Tensor) -> BatchCounts:
        """Return the counts of one batch, to be added up over an accumulated batch."""
        raise NotImplementedError

    def _objective(
        self, inputs: dict[str, Any], labels: Tensor, weights: dict[str, float], counts: BatchCounts
    ) -> BALoraOutput:
        """Compute the task's objective: teacher pass, student pass, loss and components.

        The teacher runs first, so that nothing it switches is still switched when backward recomputes the student's
        activations.
        """
        raise NotImplementedError

    def _adapter_terms(self) -> dict[str, Tensor]:
        """Return the unweighted terms of the adapters' own weights: SeLoRA's semantic term, tasks' alignment, EWC."""
        config, terms = self.balora_config, {}
        if self.lora_gate is not None and config.semantic_weight:
            terms["semantic"] = selora.semantic_term(self, self.sentences, config)
        if config.alignment_weight:
            terms["alignment"] = alignment_term(self, self.task_rows.names)
        if config.ewc_weight:
            if self.fisher is None:
                raise BALoraError(
                    "ewc_weight: there is no Fisher information; before training set model.fisher to "
                    "balora.adapters.ewc.fisher_diagonals(model, batches) of texts to protect, or use 0"
                )
            terms["ewc"] = ewc_penalty(self, self.fisher)
        return terms

    def _random_state(self) -> RandomState:
        """Return the random state that the bias path's second pass starts from; empty where the path is off."""
        return random_state() if self.balora_config.bias_path_weight else []

    def _weights_in_training(self) -> dict[str, float]:
        config = self.balora_config
        if config.counterfactual_words is not None and self.swaps is None:
            raise BALoraError(
                "counterfactual_words: the words are not known as tokens yet; give get_balora_model tokenizer=…, or "
                f"call model.set_swaps(Swaps(read_word_groups({config.counterfactual_words!r}), tokenizer)) from "
                "balora.counterfactual"
            )
        if self._progress is None and schedules_of(config) - {"constant"} and not self._warned_of_progress:
            self._warned_of_progress = True
            warnings.warn(
                "balora: the training progress is unknown, so the regularizers' schedules keep every weight at its "
                "full value; call model.set_progress(step / total_steps) before each step, add "
                "balora.ScheduleCallback() to the trainer, or use BALoraTrainer"
            )
        weights = self.current_weights()
        if "anchor" in weights:
            weights["anchor"] *= anchor_factor(config, self._step)
        return weights

    @classmethod
    def from_pretrained(
        cls, model: PreTrainedModel, model_id: str | os.PathLike, is_trainable: bool = False
    ) -> "BALoraModel":
        """Load a saved model, teacher included, for inference or further training.

        Args:
            model: The base model, unchanged.
            model_id: Folder that `save_pretrained` wrote.
            is_trainable: Whether to continue training; otherwise the adapter is frozen and in evaluation mode.

        Raises:
            BALoraError: If balora did not write the folder, or it does not fit the base model.
        """
        return load_adapted(MODEL_CLASSES, model, model_id, is_trainable=is_trainable)
