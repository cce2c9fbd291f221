"""The model: an adapted one, whose training forward also holds the teacher pass and the objective.

Student, teacher and loss run inside one `forward`, so that whatever wraps the module (DDP, FSDP, autocast, a trainer)
sees one call. In evaluation mode, or without labels, it is the PEFT model and nothing else.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from balora.adapters import selora
from balora.adapters.adapted import AdaptedModel
from balora.adapters.assembly import load_adapted
from balora.adapters.bias_path import RandomState, random_state
from balora.adapters.selora import sentence_gates
from balora.adapters.task_adapters import TaskIds, alignment_term, task_routing
from balora.config import BALoraConfig
from balora.counterfactual import Swaps
from balora.errors import BALoraError
from balora.model.schedule import weights_at

#: The model's class, by PEFT's task type; each subclass adds itself.
MODEL_CLASSES: dict[str, type["BALoraModel"]] = {}


@dataclass
class BALoraOutput(ModelOutput):
    """What a training forward returns.

    Attributes:
        loss: Scalar, task loss plus weighted regularizers.
        logits: The student's; `None` where the loss came from hidden states.
        components: Detached and unweighted: `task`, and each of `consistency`, `diversity`, `spectral` that was
            computed; multiplied by this micro-batch's share, so that they add up over an accumulated batch. `router`
            is what a mixture of experts adds to its own loss, coefficient included; `semantic` is SeLoRA's;
            `bias_path`, `alignment` and `anchor` are as their names say.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    components: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class BatchCounts:
    """What a batch holds; of an accumulated one, of which a forward sees a part, `None` where nobody counted.

    Attributes:
        items: Labelled items, over which the task loss is a mean.
        tokens: Tokens that are not padding (examples, in classification), over which the regularizers are.
    """

    items: Tensor | int | None
    tokens: Tensor | int | None


def combined(
    output: ModelOutput, task_loss: Tensor, terms: dict[str, Tensor], share: Tensor | float, weights: dict[str, float]
) -> BALoraOutput:
    """The student's output with the whole loss: task loss plus this micro-batch's share of each weighted term."""
    components = {"task": task_loss} | {name: share * term for name, term in terms.items()}
    loss = task_loss + sum(weights[name] * components[name] for name in terms)
    detached = {name: component.detach() for name, component in components.items()}
    return BALoraOutput(loss=loss, logits=output.logits, components=detached)


class BALoraModel(AdaptedModel):
    """What the models of all tasks share; made by `get_balora_model` or `from_pretrained`.

    A subclass names its task: `class BALoraModelForX(BALoraModel, PeftModelForX, task_type=TaskType.X)`.

    Attributes:
        swaps: What `counterfactual_words` exchanges; `None` until set.
    """

    def __init_subclass__(cls, task_type: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if task_type is not None:
            MODEL_CLASSES[task_type] = cls

    def __init__(self, model: PreTrainedModel, config: BALoraConfig) -> None:
        super().__init__(model, config)
        self.swaps: Swaps | None = None
        self._progress: float | None = None
        self._warned_of_progress = False

    def set_swaps(self, swaps: Swaps) -> None:
        """Give what `counterfactual_words` averages the teacher over; it is not saved with the model.

        Args:
            swaps: `balora.counterfactual.Swaps` of those words and of the model's tokenizer.

        Raises:
            BALoraError: If the configuration names no words.
        """
        if self.balora_config.counterfactual_words is None:
            raise BALoraError("counterfactual_words: none in the configuration; name there what is exchanged")
        self.swaps = swaps

    def set_progress(self, progress: float) -> None:
        """Tell the schedules how much of training is done, 0 to 1. Balora's trainers do so before every step."""
        self._progress = progress

    def current_weights(self) -> dict[str, float]:
        """The weight of each regularizer at the present progress."""
        weights = weights_at(self.balora_config, self._progress)
        if self.lora_gate is not None:
            weights["semantic"] = self.balora_config.semantic_weight
        if self.lora_bias_path is not None:
            weights["bias_path"] = self.balora_config.bias_path_weight
        if self.balora_config.anchor_weight:
            weights["anchor"] = self.balora_config.anchor_weight
        if self.task_rows is not None:
            weights["alignment"] = self.balora_config.alignment_weight
        return weights

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
        """The PEFT model's forward; in training mode with labels, the whole objective.

        Args:
            input_ids: `(B, S)`.
            attention_mask: `(B, S)`, 0 where there is padding; it also marks the tokens that the regularizers see.
            inputs_embeds: `(B, S, d)`, in place of ids.
            labels: The base model's labels. In training mode their presence asks for the objective.
            num_items_in_batch: Labelled items in the whole accumulated batch, as Transformers' `Trainer` counts them.
                Given, the task loss is a sum over this micro-batch divided by it.
            num_tokens_in_batch: Tokens that are not padding (examples, in classification) in the whole accumulated
                batch: this micro-batch's regularizers then weigh by its share. Missing, they weigh like the task loss.
            sentence_embeds: `(B, sentence_dim)`, SeLoRA's sentence vector of each row.
            task_ids: Which of `task_names` each row is of: places, `(B,)`, or names, or one name for all. In
                evaluation `set_adapter(name)` stands in for it.
            **kwargs: The base model's further inputs.

        Returns:
            `BALoraOutput` in training with labels, else whatever the base model returns.

        Raises:
            BALoraError: If SeLoRA has not one sentence vector for each row, or another method has any; the same of
                tasks.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        inputs = {name: value for name, value in named.items() if value is not None} | kwargs
        # In training the gates outlive the forward: a backward with gradient checkpointing meets them again.
        rows = {**inputs, "labels": labels}
        with (
            sentence_gates(self, sentence_embeds, rows, keep=self.training),
            task_routing(self, task_ids, rows, keep=self.training),
        ):
            if not self.training or labels is None:
                if num_items_in_batch is not None:
                    inputs["num_items_in_batch"] = num_items_in_batch
                return super().forward(labels=labels, **inputs)
            counts = BatchCounts(num_items_in_batch, num_tokens_in_batch)
            self._in_forward = True
            try:
                return self._objective(inputs, labels, self._weights_in_training(), counts)
            finally:
                self._in_forward = False

    def counts_of(self, inputs: dict[str, Any], labels: Tensor) -> BatchCounts:
        """What one batch adds to the counts of an accumulated one."""
        raise NotImplementedError

    def _objective(
        self, inputs: dict[str, Any], labels: Tensor, weights: dict[str, float], counts: BatchCounts
    ) -> BALoraOutput:
        """The task's part: teacher pass, student pass, loss and components.

        The teacher goes first, so that nothing it switches can still be switched when backward recomputes the
        student's activations.
        """
        raise NotImplementedError

    def _adapter_terms(self) -> dict[str, Tensor]:
        """The regularizers on adapters themselves, unweighted: SeLoRA's of the present batch, and tasks' alignment."""
        config, terms = self.balora_config, {}
        if self.lora_gate is not None and config.semantic_weight:
            terms["semantic"] = selora.semantic_term(self, self.sentences, config)
        if config.alignment_weight:
            terms["alignment"] = alignment_term(self, self.task_rows.names)
        return terms

    def _random_state(self) -> RandomState:
        """What the bias path's second pass begins with; nothing where there is none."""
        return random_state() if self.balora_config.bias_path_weight else []

    def _weights_in_training(self) -> dict[str, float]:
        config = self.balora_config
        if config.counterfactual_words is not None and self.swaps is None:
            raise BALoraError(
                "counterfactual_words: the words are not known as tokens yet; call model.set_swaps(Swaps("
                f"read_word_groups({config.counterfactual_words!r}), tokenizer)) of balora.counterfactual"
            )
        schedules = {config.consistency_schedule, config.diversity_schedule, config.spectral_schedule}
        if self._progress is None and schedules != {"constant"} and not self._warned_of_progress:
            self._warned_of_progress = True
            warnings.warn(
                "balora: the regularizers' schedules do not know how far training is, so weights stand at full; call "
                "model.set_progress(step / total_steps) before each step, add balora.ScheduleCallback() to the "
                "trainer, or use BALoraTrainer"
            )
        return self.current_weights()

    @classmethod
    def from_pretrained(
        cls, model: PreTrainedModel, model_id: str | os.PathLike, is_trainable: bool = False
    ) -> "BALoraModel":
        """Load what `save_pretrained` wrote, teacher included, to use or to train further.

        Args:
            model: The base model, untouched.
            model_id: Folder that balora wrote.
            is_trainable: Whether to go on training; otherwise the adapter is frozen and in evaluation mode.

        Raises:
            BALoraError: If the folder is not balora's or does not fit the base model.
        """
        return load_adapted(MODEL_CLASSES, model, model_id, is_trainable=is_trainable)
