"""The model: PEFT's, whose training forward also holds the teacher pass and the objective.

Student, teacher and loss run inside one `forward`, so that whatever wraps the module (DDP, FSDP, autocast, a trainer)
sees one call. In evaluation mode, or without labels, it is the PEFT model and nothing else.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from balora.adapters import four_bit, saving, semantic
from balora.adapters.gates import SentenceGate
from balora.adapters.teacher import STUDENT, TEACHER, as_teacher, move_base, student_aside
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.schedule import weights_at


@dataclass
class BALoraOutput(ModelOutput):
    """What a training forward returns.

    Attributes:
        loss: Scalar, task loss plus weighted regularizers.
        logits: The student's; `None` where the loss came from hidden states.
        components: Detached and unweighted: `task`, and each of `consistency`, `diversity`, `spectral` that was
            computed; multiplied by this micro-batch's share, so that they add up over an accumulated batch. `router`
            is what a mixture of experts adds to its own loss, coefficient included; `semantic` is SeLoRA's.
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


class BALoraModel(PeftModel):
    """What all tasks share (`balora.tasks` has the rest); made by `get_balora_model` or `from_pretrained`.

    Attributes:
        balora_config: The configuration, with published values filled in.
        lora_gate: SeLoRA's gates; `None` in other methods.
        drift: Figures for the model card, set by whoever measured them.
    """

    def __init__(self, model: PreTrainedModel, config: BALoraConfig) -> None:
        lora_config = config.lora_config()
        lora_config.base_model_name_or_path = model.name_or_path or None
        super().__init__(model, lora_config, STUDENT)
        self.balora_config = config
        self.lora_gate: SentenceGate | None = None
        self._sentences: Tensor | None = None
        self.drift: dict[str, float] | None = None
        self._progress: float | None = None
        self._warned_of_progress = False

    # ------------------------------------------------------------------ training

    def set_progress(self, progress: float) -> None:
        """Tell the schedules how much of training is done, 0 to 1. Balora's trainers do so before every step."""
        self._progress = progress

    def current_weights(self) -> dict[str, float]:
        """The weight of each regularizer at the present progress."""
        weights = weights_at(self.balora_config, self._progress)
        return weights if self.lora_gate is None else {**weights, "semantic": self.balora_config.semantic_weight}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_tokens_in_batch: Tensor | int | None = None,
        sentence_embeds: Tensor | None = None,
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
            **kwargs: The base model's further inputs.

        Returns:
            `BALoraOutput` in training with labels, else whatever the base model returns.

        Raises:
            BALoraError: If SeLoRA has not one sentence vector for each row, or another method has any.
        """
        named = {"input_ids": input_ids, "attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        inputs = {name: value for name, value in named.items() if value is not None} | kwargs
        # In training the gates outlive the forward: a backward with gradient checkpointing meets them again.
        with self._guided(sentence_embeds, {**inputs, "labels": labels}, keep=self.training):
            if not self.training or labels is None:
                if num_items_in_batch is not None:
                    inputs["num_items_in_batch"] = num_items_in_batch
                return super().forward(labels=labels, **inputs)
            counts = BatchCounts(num_items_in_batch, num_tokens_in_batch)
            return self._objective(inputs, labels, self._weights_in_training(), counts)

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The pretrained model's output for these inputs: evaluation mode, no gradient, nothing left changed.

        In classification the backbone is the pretrained one and the head the live one: a head starts random, so there
        is no pretrained one to agree with (BA-LoRA on GLUE).
        """
        for name in ("labels", "num_items_in_batch", "num_tokens_in_batch", "sentence_embeds"):
            kwargs.pop(name, None)
        with as_teacher(self, live_head=self.balora_config.task_type == TaskType.SEQ_CLS):
            return super().forward(*args, **kwargs)

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

    @contextmanager
    def _guided(self, s: Tensor | None, inputs: dict[str, Any], *, keep: bool = False) -> Iterator[None]:
        """Within, these sentence vectors gate SeLoRA's layers; without any, a layer that needs its own says so.

        Args:
            s: `(B, sentence_dim)`.
            inputs: What the B rows are.
            keep: Whether they stand until the next batch.
        """
        if s is not None:
            semantic.check_sentences(s, inputs, self.balora_config)
        if self.lora_gate is None:
            yield
            return
        semantic.set_gates(self, None if s is None else self.lora_gate(s))
        self._sentences = s
        try:
            yield
        finally:
            if not keep:
                semantic.set_gates(self, None)
                self._sentences = None

    def _semantic_terms(self) -> dict[str, Tensor]:
        """SeLoRA's own regularizer of the batch that its layers are set to, unweighted; empty where there is none."""
        if self.lora_gate is None or not self.balora_config.semantic_weight:
            return {}
        return {"semantic": semantic.semantic_term(self, self._sentences, self.balora_config)}

    def _weights_in_training(self) -> dict[str, float]:
        config = self.balora_config
        schedules = {config.consistency_schedule, config.diversity_schedule, config.spectral_schedule}
        if self._progress is None and schedules != {"constant"} and not self._warned_of_progress:
            self._warned_of_progress = True
            warnings.warn(
                "balora: the regularizers' schedules do not know how far training is, so weights stand at full; call "
                "model.set_progress(step / total_steps) before each step, add balora.ScheduleCallback() to the "
                "trainer, or use BALoraTrainer"
            )
        return self.current_weights()

    # ------------------------------------------------------------------ as PEFT's

    def disable_adapter(self) -> Any:
        """Context in which the model is the pretrained one, its own head included, for every method.

        Where a residual was quantized, it is the function that the student started from.
        """
        return student_aside(self)

    def unload(self) -> torch.nn.Module:
        """Take the adapter off and return the pretrained model, its weights whole again.

        Raises:
            BALoraError: If those are a quantized residual; see `dequantize`.
        """
        if self.balora_config.residual:
            four_bit.refuse_four_bit(self, "unload")
            move_base(self, +1)
        return self.base_model.unload()

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """As PEFT's.

        Raises:
            BALoraError: If the base is in 4 bits; see `dequantize`.
        """
        four_bit.refuse_four_bit(self, "merge_adapter")
        self.base_model.merge_adapter(*args, **kwargs)

    def merge_and_unload(self, *args: Any, sentence_embeds: Tensor | None = None, **kwargs: Any) -> torch.nn.Module:
        """As PEFT's, and for SeLoRA at the sentence, or the mean of the sentences, of `merge_at`.

        Raises:
            BALoraError: If the base is in 4 bits; see `dequantize`. If the method is SeLoRA and no sentence is given.
        """
        four_bit.refuse_four_bit(self, "merge_and_unload")
        if sentence_embeds is not None:
            self.merge_at(sentence_embeds)
        return self.base_model.merge_and_unload(*args, **kwargs)

    def merge_at(self, sentence_embeds: Tensor) -> None:
        """Make SeLoRA's adapter the plain LoRA that it is at one sentence: A·f(s)·B with A·f(s) as its new A.

        There is no way back. The model then takes no sentence vectors, and saves and merges as any LoRA does.

        Args:
            sentence_embeds: `(sentence_dim,)`; or `(N, sentence_dim)` for the mean of N sentences' gates.

        Raises:
            BALoraError: If the method is not SeLoRA, or the vectors are of another length.
        """
        s = sentence_embeds.reshape(-1, sentence_embeds.shape[-1])
        semantic.check_sentences(s, {}, self.balora_config)
        with torch.no_grad():
            semantic.fold_gates(self, self.lora_gate(s))
        self.lora_gate = self._sentences = None
        self.balora_config = replace(self.balora_config, method="lora", sentence_dim=None, semantic_weight=0.0)

    def dequantize(self) -> None:
        """Turn a base in 4 bits into one in full precision with the same values: same functions, whole memory.

        Student and teacher stay what they are, and merging and unloading work as without quantization.
        """
        four_bit.dequantize(self)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        save_embedding_layers: str | bool = "auto",
        **kwargs: Any,
    ) -> None:
        """Save a plain LoRA adapter that loads with `PeftModel.from_pretrained` and no balora.

        SeLoRA's is none, and loads with `BALoraModel.from_pretrained` alone; PEFT refuses it.

        Writes `adapter_model.safetensors`, `adapter_config.json`, `balora_config.json` and the model card.

        Args:
            save_directory: Folder, made if absent.
            is_main_process: Only this process writes.
            state_dict: The model's, where a sharded trainer gathered it.
            save_embedding_layers: As in PEFT.
            **kwargs: PEFT's further options; only safetensors are written and only the student is.
        """
        if not is_main_process:
            return
        read = {"state_dict": state_dict, "save_embedding_layers": save_embedding_layers}
        state = get_peft_model_state_dict(self, adapter_name=STUDENT, **read)
        lora_config = replace(self.peft_config[STUDENT], inference_mode=True)
        if self.balora_config.residual:
            start = get_peft_model_state_dict(self, adapter_name=TEACHER, **read)
            state = saving.stack_factors(state, start, saving.experts_by_key(self))
            saving.scale_rank(lora_config, 2)
        if self.lora_gate is not None:
            state = saving.with_gate(state, self.state_dict() if state_dict is None else state_dict)
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        # safetensors takes neither views nor two names for one storage
        state = {name: tensor.detach().contiguous().clone() for name, tensor in state.items()}
        save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        lora_config.save_pretrained(directory)
        if self.lora_gate is not None:
            saving.hide_from_peft(directory)
        saving.write_settings(directory, self.balora_config)
        self.create_or_update_model_card(directory)

    def create_or_update_model_card(self, output_dir: str | os.PathLike) -> None:
        """Write `README.md`: method, settings, measured drift."""
        base_model = self.peft_config[STUDENT].base_model_name_or_path
        saving.model_card(self.balora_config, base_model, self.drift).save(Path(output_dir) / "README.md")

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, **kwargs: Any) -> Any:
        """Load saved weights into this model, as PEFT does; a trainer resumes by it.

        A residual adapter brings its own start along. Where that differs from this model's (another seed, another
        machine's SVD), the base weights are moved to match.

        Raises:
            BALoraError: If it differs and the base is a quantized residual, which cannot be moved.
        """
        if adapter_name != STUDENT or not (self.balora_config.residual or self.lora_gate is not None):
            return super().load_adapter(model_id, adapter_name, **kwargs)
        saving.read_settings(model_id)
        saved = load_peft_weights(str(model_id), device=str(self.device))
        if self.lora_gate is not None:
            student, gate = saving.split_gate(saved)
            self.lora_gate.load_state_dict(gate)
            return set_peft_model_state_dict(self, student, adapter_name=STUDENT)
        student, teacher = saving.split_factors(saved, saving.experts_by_key(self))
        current = get_peft_model_state_dict(self, adapter_name=TEACHER)
        if not all(torch.equal(current[key], tensor.to(current[key])) for key, tensor in teacher.items()):
            if four_bit.is_four_bit(self):
                raise BALoraError(
                    f"{model_id} left another residual than the one that is in 4 bits here; load it with "
                    "BALoraModel.from_pretrained on the model in full precision"
                )
            move_base(self, +1)
            set_peft_model_state_dict(self, teacher, adapter_name=TEACHER)
            move_base(self, -1)
        return set_peft_model_state_dict(self, student, adapter_name=STUDENT)

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
        # The classes that this chooses among derive from this one, so their module cannot be imported above.
        from balora.build import load_balora_model

        return load_balora_model(model, model_id, is_trainable=is_trainable)
