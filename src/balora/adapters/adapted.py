"""PEFT's model as balora changes it: where the teacher is, what an adapter merges to, how it is saved and loaded.

`balora.model.base` adds training to it.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel, TaskType
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from balora.adapters import bias_path, four_bit, saving, selora, task_adapters
from balora.adapters.bias_path import BiasEmbedding
from balora.adapters.selora import SentenceGate
from balora.adapters.task_adapters import TaskRows
from balora.adapters.teacher import STUDENT, TEACHER, as_teacher, move_base, student_aside
from balora.config import BALoraConfig
from balora.errors import BALoraError
from balora.utils.distributed import CHECKPOINTED, is_sharded, whole_state

if TYPE_CHECKING:
    from balora.adapters.adapted import AdaptedModel


class AdaptedModel(PeftModel):
    """A pretrained model with the adapter that is trained, and all that its teacher takes.

    Attributes:
        balora_config: The configuration, with published values filled in.
        lora_gate: SeLoRA's gates; `None` in other methods.
        lora_bias_path: b of the bias path; `None` without one.
        task_rows: Which task each row of the present batch is of; `None` where there are no tasks.
        evaluated_task: The task of rows that come without one, in evaluation; `None` where none was set.
        sentences: `(B, sentence_dim)`, the vectors that SeLoRA's gates are set to; `None` between batches.
        drift: Figures for the model card, set by whoever measured them.
    """

    def __init__(self, model: PreTrainedModel, config: BALoraConfig) -> None:
        lora_config = config.lora_config()
        lora_config.base_model_name_or_path = model.name_or_path or None
        super().__init__(model, lora_config, config.task_names[0] if config.task_names else STUDENT)
        self.balora_config = config
        self.lora_gate: SentenceGate | None = None
        self.lora_bias_path: BiasEmbedding | None = None
        self.task_rows: TaskRows | None = None
        self.evaluated_task: str | None = None
        self.sentences: Tensor | None = None
        self.drift: dict[str, float] | None = None
        self._in_forward = False

    def disable_adapter(self) -> Any:
        """Context in which the model is the pretrained one, its own head included, for every method.

        Where a residual was quantized, it is the function that the student started from.
        """
        return student_aside(self)

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """The pretrained model's output for these inputs: evaluation mode, no gradient, nothing left changed.

        In classification the backbone is the pretrained one and the head the live one: a head starts random, so there
        is no pretrained one to agree with (BA-LoRA on GLUE).
        """
        for name in ("labels", "num_items_in_batch", "num_tokens_in_batch", "sentence_embeds", "task_ids"):
            kwargs.pop(name, None)
        with as_teacher(self, live_head=self.balora_config.task_type == TaskType.SEQ_CLS):
            if isinstance(self, FSDPModule) and not self._in_forward:
                return self(*args, **kwargs)  # the call in which the outermost weights are whole
            return super().forward(*args, **kwargs)

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
        selora.check_sentences(s, {}, self.balora_config)
        with torch.no_grad():
            selora.fold_gates(self, self.lora_gate(s))
        self.lora_gate = None
        self.balora_config = replace(self.balora_config, method="lora", sentence_dim=None, semantic_weight=0.0)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """As PEFT's. Of several tasks, the one of all rows that come without `task_ids`, in evaluation alone."""
        if self.task_rows is None:
            return super().set_adapter(adapter_name, inference_mode)
        task_adapters.ids_of(adapter_name, self.task_rows.names, 1)
        self.evaluated_task = adapter_name
        return None

    def merge_tasks(self, names: Sequence[str] | None = None) -> None:
        """Make several tasks' adapters one plain LoRA that is their mean, exactly: of rank n·r for n tasks.

        There is no way back. The model then takes no `task_ids`, and saves and merges as any LoRA does.

        Args:
            names: Of the tasks that it is the mean of, one to keep it alone; `None` for all.

        Raises:
            BALoraError: If the model has no tasks, or not these.
        """
        if self.task_rows is None:
            raise BALoraError("merge_tasks: there are no tasks here; use merge_and_unload()")
        every = self.task_rows.names
        kept = every if names is None else list(names)
        task_adapters.ids_of(kept, every, len(kept))
        task_adapters.merge_into_one(self, every, kept)
        self.task_rows = self.evaluated_task = None
        merged = self.peft_config[STUDENT]
        ranks = {name: getattr(merged, name) for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}
        self.balora_config = replace(self.balora_config, task_names=None, alignment_weight=0.0, **ranks)

    def set_bias_direction(self, direction: Tensor) -> None:
        """Give the bias path the direction of its b, which `bias_path_radius` makes as long as it is.

        Args:
            direction: `(d,)`, such as `balora.losses.counterfactual_direction` of what the model's input embeddings
                give for the two sides of counterfactual pairs. Of any length but 0.

        Raises:
            BALoraError: If `bias_path_mode` is not `counterfactual`, or the vector is none for this model.
        """
        if self.lora_bias_path is None or self.lora_bias_path.mode != "counterfactual":
            raise BALoraError(
                f"bias_path_mode: {self.balora_config.bias_path_mode} finds its own direction, or there is no bias "
                "path; use bias_path_mode='counterfactual' and a bias_path_weight"
            )
        self.lora_bias_path.set_direction(direction, like=bias_path.input_embeddings(self.get_base_model()).weight)

    def load_bias_direction(self, directory: str | os.PathLike) -> None:
        """Read the saved direction of the bias path's b, to resume training.

        Raises:
            BALoraError: If it is missing, or of another model's width.
        """
        self.lora_bias_path.load_direction(directory, like=bias_path.input_embeddings(self.get_base_model()).weight)

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

        SeLoRA's is none, and loads with `BALoraModel.from_pretrained` alone; PEFT refuses it. Of several tasks each
        has such a folder of its own, `save_directory/task`, and `BALoraModel.from_pretrained` takes the one above.

        Writes `adapter_model.safetensors`, `adapter_config.json`, `balora_config.json` and the model card; of a bias
        path also `bias_path.safetensors`, which only training needs.

        Args:
            save_directory: Folder, made if absent.
            is_main_process: Only this process writes. Of a model that FSDP2 or ZeRO-3 has spread over processes all
                must call this, since its weights are gathered here.
            state_dict: The model's, where a sharded trainer gathered it.
            save_embedding_layers: As in PEFT.
            **kwargs: PEFT's further options; only safetensors are written and only the student is.
        """
        if state_dict is None and is_sharded(self):
            state_dict = whole_state(self)
        if not is_main_process:
            return
        read = {"state_dict": state_dict, "save_embedding_layers": save_embedding_layers}
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        if self.lora_bias_path is not None:
            self.lora_bias_path.save_direction(directory, state_dict)
        if self.task_rows is None:
            write_adapter(self, directory, STUDENT, read)
        else:
            for name in self.task_rows.names:
                (directory / name).mkdir(exist_ok=True)
                write_adapter(self, directory / name, name, read)
                alone = saving.settings_of_one_task(self.balora_config)
                saving.write_settings(directory / name, alone)
        saving.write_settings(directory, self.balora_config)
        self.create_or_update_model_card(directory)

    def create_or_update_model_card(self, output_dir: str | os.PathLike) -> None:
        """Write `README.md`: method, settings, measured drift."""
        base_model = self.peft_config[self.active_adapter].base_model_name_or_path
        saving.model_card(self.balora_config, base_model, self.drift).save(Path(output_dir) / "README.md")

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, **kwargs: Any) -> Any:
        """Load saved weights into this model, as PEFT does; a trainer resumes by it.

        Of several tasks, `adapter_name` is the task and `model_id` its folder in the one that was saved.

        A residual adapter brings its own start along. Where that differs from this model's (another seed, another
        machine's SVD), the base weights are moved to match.

        Raises:
            BALoraError: If it differs and the base is a quantized residual, which cannot be moved.
        """
        if self.task_rows is not None:
            if self.lora_bias_path is not None:
                self.load_bias_direction(Path(model_id).parent)
            saved = load_peft_weights(str(model_id), device=str(self.device))
            return set_peft_model_state_dict(self, saved, adapter_name=adapter_name)
        if adapter_name == STUDENT and self.lora_bias_path is not None:
            self.load_bias_direction(model_id)
        if adapter_name != STUDENT or not (self.balora_config.residual or self.lora_gate is not None):
            return super().load_adapter(model_id, adapter_name, **kwargs)
        return load_student(self, model_id)


def write_adapter(model: AdaptedModel, directory: Path, name: str, read: dict[str, Any]) -> None:
    """Write PEFT's two files of one adapter.

    Args:
        model: The adapter's.
        directory: Folder, there already.
        name: The adapter's.
        read: How `get_peft_model_state_dict` reads it.
    """
    state = bias_path.without_bias_path(get_peft_model_state_dict(model, adapter_name=name, **read))
    lora_config = replace(model.peft_config[name], inference_mode=True)
    if model.balora_config.residual:
        start = get_peft_model_state_dict(model, adapter_name=TEACHER, **read)
        state = saving.stack_factors(state, start, saving.experts_by_key(model))
        saving.scale_rank(lora_config, 2)
    if model.lora_gate is not None:
        state = saving.with_gate(state, read["state_dict"] or model.state_dict())
    # safetensors takes neither views nor two names for one storage
    state = {name.replace(CHECKPOINTED, ""): tensor.detach().contiguous().clone() for name, tensor in state.items()}
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    saving.order_sets(lora_config)
    lora_config.save_pretrained(directory)
    if model.lora_gate is not None:
        saving.hide_from_peft(directory)


def load_student(model: AdaptedModel, model_id: str | os.PathLike) -> Any:
    """Read what is no plain LoRA for PEFT, SeLoRA's or a residual method's, with the residual's own start.

    Raises:
        BALoraError: If that start differs and the base is a quantized residual, which cannot be moved.
    """
    saving.read_settings(model_id)
    saved = load_peft_weights(str(model_id), device=str(model.device))
    if model.lora_gate is not None:
        student, gate = saving.split_gate(saved)
        model.lora_gate.load_state_dict(gate)
        return set_peft_model_state_dict(model, student, adapter_name=STUDENT)
    student, teacher = saving.split_factors(saved, saving.experts_by_key(model))
    current = get_peft_model_state_dict(model, adapter_name=TEACHER)
    if not all(torch.equal(current[key], tensor.to(current[key])) for key, tensor in teacher.items()):
        if four_bit.is_four_bit(model):
            raise BALoraError(
                f"{model_id} left another residual than the one that is in 4 bits here; load it with "
                "BALoraModel.from_pretrained on the model in full precision"
            )
        move_base(model, +1)
        set_peft_model_state_dict(model, teacher, adapter_name=TEACHER)
        move_base(model, -1)
    return set_peft_model_state_dict(model, student, adapter_name=STUDENT)
