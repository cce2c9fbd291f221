"""`AdaptedModel`: PEFT's model with the teacher pass, merging, saving and loading of balora's methods.

`balora.model.base` adds the training objective.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, TaskType
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from balora.adapters import bias_path, four_bit, model_checks, saving, selora, task_adapters
from balora.adapters.bias_path import BiasEmbedding
from balora.adapters.selora import SentenceGate
from balora.adapters.task_adapters import TaskRows
from balora.adapters.teacher import STUDENT, TEACHER, adapter_disabled, lora_layers, shift_base_weights, teacher_mode
from balora.adapters.trained_in_full import restore_base_precision
from balora.config import BALoraConfig, renamed
from balora.errors import BALoraError
from balora.utils.distributed import CHECKPOINT_WRAPPER, gather_adapter_state, is_sharded


class AdaptedModel(PeftModel):
    """A pretrained model with a trained adapter, from which the teacher can be computed too.

    Attributes:
        balora_config: The configuration, with published values filled in.
        lora_gate: SeLoRA's gates; `None` for other methods.
        lora_bias_path: The bias path's b; `None` without one.
        task_rows: The task of each row of the current batch; `None` without tasks.
        evaluated_task: In evaluation, the task of rows given without one; `None` if not set.
        sentences: `(B, sentence_dim)`, the embeddings that SeLoRA's gates are set to; `None` between batches.
        drift: Measured drift for the model card; `None` if not measured.
        drift_rows: The rows that drift was measured on, for the card: `128 rows of the evaluation set`.
        after_training: What was done to the weights after training, a sentence for the card; may be empty.
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
        self.drift_rows: str | None = None
        self.after_training = ""
        self._in_forward = False

    def disable_adapter(self) -> Any:
        """Context manager: the model is the pretrained one, including its head, for every method.

        If a residual was quantized, it is the function that the student was initialized to.
        """
        return adapter_disabled(self)

    def teacher_forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the pretrained model's output, in evaluation mode and without gradient; all state is restored.

        In classification only the backbone is the pretrained one, and the head is the one in training: heads are
        initialized at random, so there is no pretrained one (BA-LoRA on GLUE).
        """
        for name in ("labels", "num_items_in_batch", "num_tokens_in_batch", "sentence_embeds", "task_ids"):
            kwargs.pop(name, None)
        with teacher_mode(self, live_head=self.balora_config.task_type == TaskType.SEQ_CLS):
            if isinstance(self, FSDPModule) and not self._in_forward:
                return self(*args, **kwargs)  # FSDP gathers the outermost weights in __call__
            return super().forward(*args, **kwargs)

    def unload(self) -> torch.nn.Module:
        """Remove the adapter and return the pretrained model with its original weights.

        Raises:
            BALoraError: If the base is a quantized residual; see `dequantize`.
        """
        if self.balora_config.residual:
            four_bit.require_full_precision(self, "unload")
            shift_base_weights(self, +1)
        return self.base_model.unload()

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Merge the adapter as PEFT does.

        Raises:
            BALoraError: If the base is in 4 bits (see `dequantize`), or an adapted weight is shared by other modules.
        """
        four_bit.require_full_precision(self, "merge_adapter")
        model_checks.check_shared_weights(self)
        self.base_model.merge_adapter(*args, **kwargs)

    def merge_and_unload(self, *args: Any, sentence_embeds: Tensor | None = None, **kwargs: Any) -> torch.nn.Module:
        """Merge as PEFT does; SeLoRA first becomes a plain LoRA at the given sentences (`merge_at`).

        Raises:
            BALoraError: If the base is in 4 bits (see `dequantize`), SeLoRA has no sentence embeddings, or an adapted
                weight is shared by other modules.
        """
        four_bit.require_full_precision(self, "merge_and_unload")
        model_checks.check_shared_weights(self)
        if sentence_embeds is not None:
            self.merge_at(sentence_embeds)
        merged = self.base_model.merge_and_unload(*args, **kwargs)
        restore_base_precision(merged)
        return merged

    def merge_at(self, sentence_embeds: Tensor) -> None:
        """Turn SeLoRA's adapter into the plain LoRA that it is at one sentence, with A·f(s) as its A.

        This cannot be undone. The model then takes no sentence embeddings, and saves and merges like any LoRA.

        Args:
            sentence_embeds: `(sentence_dim,)`; or `(N, sentence_dim)` for the mean gate of N sentences.

        Raises:
            BALoraError: If the method is not SeLoRA, or the embeddings have another size.
        """
        s = sentence_embeds.reshape(-1, sentence_embeds.shape[-1])
        selora.check_sentence_embeds(s, {}, self.balora_config)
        with torch.no_grad():
            selora.fold_gates(self, self.lora_gate(s))
        self.lora_gate = None
        name = renamed(self.balora_config.method, initialization="lora")
        self.balora_config = replace(self.balora_config, method=name, sentence_dim=None, semantic_weight=0.0)

    def set_adapter(self, adapter_name: str, inference_mode: bool = False) -> None:
        """Set the active adapter as PEFT does; with tasks, the task of rows evaluated without `task_ids`."""
        if self.task_rows is None:
            return super().set_adapter(adapter_name, inference_mode)
        task_adapters.task_indices(adapter_name, self.task_rows.names, 1)
        self.evaluated_task = adapter_name
        return None

    def merge_tasks(self, names: Sequence[str] | None = None) -> None:
        """Replace the tasks' adapters by one plain LoRA, their exact mean, of rank n·r for n tasks.

        This cannot be undone. The model then takes no `task_ids`, and saves and merges like any LoRA.

        Args:
            names: Names of the tasks to average, or of one to keep; `None` for all.

        Raises:
            BALoraError: If the model has no tasks, or a name is unknown.
        """
        if self.task_rows is None:
            raise BALoraError("merge_tasks: the model has no tasks; use merge_and_unload()")
        every = self.task_rows.names
        kept = every if names is None else list(names)
        task_adapters.task_indices(kept, every, len(kept))
        task_adapters.merge_task_adapters(self, every, kept)
        self.task_rows = self.evaluated_task = None
        merged = self.peft_config[STUDENT]
        ranks = {name: getattr(merged, name) for name in ("r", "lora_alpha", "rank_pattern", "alpha_pattern")}
        self.balora_config = replace(self.balora_config, task_names=None, alignment_weight=0.0, **ranks)

    def set_bias_direction(self, direction: Tensor) -> None:
        """Set the direction of the bias path's b; `bias_path_radius` sets its length.

        Args:
            direction: `(d,)`, nonzero, such as `balora.losses.counterfactual_direction` of the input embeddings of
                counterfactual pairs.

        Raises:
            BALoraError: If `bias_path_mode` is not `counterfactual`, or the vector does not fit the model.
        """
        if self.lora_bias_path is None or self.lora_bias_path.mode != "counterfactual":
            raise BALoraError(
                f"bias_path_mode: {self.balora_config.bias_path_mode} learns its direction, or there is no bias path; "
                "use bias_path_mode='counterfactual' and a bias_path_weight"
            )
        self.lora_bias_path.set_direction(direction, like=bias_path.input_embeddings(self.get_base_model()).weight)

    def load_bias_direction(self, directory: str | os.PathLike) -> None:
        """Load the saved direction of the bias path's b to resume training.

        Raises:
            BALoraError: If it is missing, or has another size.
        """
        self.lora_bias_path.load_direction(directory, like=bias_path.input_embeddings(self.get_base_model()).weight)

    def dequantize(self) -> None:
        """Convert a 4-bit base to full precision with the same, rounded, values, which takes its full memory.

        Student and teacher are unchanged, and merging and unloading work as without quantization.
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
        """Save a plain LoRA adapter, which `PeftModel.from_pretrained` loads without balora.

        SeLoRA is not a plain LoRA: only `BALoraModel.from_pretrained` loads it, and PEFT raises an error. With tasks,
        each has such a folder, `save_directory/task`, and `BALoraModel.from_pretrained` takes the folder above.

        Writes `adapter_model.safetensors`, `adapter_config.json`, `balora_config.json` and the model card; with a bias
        path also `bias_path.safetensors`, which only training needs.

        Args:
            save_directory: Folder, created if absent.
            is_main_process: Whether this process writes. If FSDP2 or ZeRO-3 sharded the model, all processes must
                call this, since its weights are gathered here.
            state_dict: The model's state dict, if a sharded trainer gathered it.
            save_embedding_layers: As in PEFT.
            **kwargs: PEFT's further options; only safetensors and only the student are written.
        """
        if state_dict is None and is_sharded(self):
            state_dict = gather_adapter_state(self)
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
                alone = saving.single_task_settings(self.balora_config)
                saving.write_settings(directory / name, alone)
        saving.write_settings(directory, self.balora_config)
        self.create_or_update_model_card(directory)

    def create_or_update_model_card(self, output_dir: str | os.PathLike) -> None:
        """Write the model card `README.md`: method, settings, measured drift."""
        base_model = self.peft_config[self.active_adapter].base_model_name_or_path
        card = saving.model_card(
            self.balora_config, base_model, self.drift, drift_rows=self.drift_rows, after_training=self.after_training
        )
        card.save(Path(output_dir) / "README.md")

    def load_adapter(self, model_id: str | os.PathLike, adapter_name: str, **kwargs: Any) -> Any:
        """Load saved weights into this model as PEFT does, as trainers do to resume.

        With tasks, `adapter_name` is the task and `model_id` its folder within the saved one.

        A residual adapter is saved with its initial factors. If they differ from this model's (another seed, another
        machine's SVD), the base weights are adjusted to match.

        Raises:
            BALoraError: If they differ and the base is a quantized residual, which cannot be adjusted.
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
    """Write one adapter's `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        model: The adapted model.
        directory: An existing folder.
        name: Name of the adapter.
        read: Keyword arguments of `get_peft_model_state_dict`.
    """
    state = bias_path.drop_bias_path_keys(get_peft_model_state_dict(model, adapter_name=name, **read))
    lora_config = replace(model.peft_config[name], inference_mode=True)
    if model.balora_config.residual:
        start = get_peft_model_state_dict(model, adapter_name=TEACHER, **read)
        state = saving.restore_base_weights(
            state, start, {n: m.scaling[TEACHER] for n, m in lora_layers(model).items()}
        )
        state = saving.stack_factors(state, start, saving.experts_by_key(model))
        saving.scale_rank(lora_config, 2)
    if model.lora_gate is not None:
        state = saving.add_gate_weights(state, read["state_dict"] or model.state_dict())
    # safetensors accepts neither views nor shared storage
    state = {
        name.replace(CHECKPOINT_WRAPPER, ""): tensor.detach().contiguous().clone() for name, tensor in state.items()
    }
    save_file(state, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    saving.sort_target_sets(lora_config)
    lora_config.save_pretrained(directory)
    if model.lora_gate is not None:
        saving.hide_from_peft(directory)


def load_student(model: AdaptedModel, model_id: str | os.PathLike) -> Any:
    """Load a saved SeLoRA or residual adapter, the latter with its initial factors, into a model.

    Raises:
        BALoraError: If those factors differ and the base is a quantized residual, which cannot be adjusted.
    """
    saving.read_settings(model_id)
    saved = load_peft_weights(str(model_id), device=str(model.device))
    if model.lora_gate is not None:
        student, gate = saving.split_gate(saved)
        model.lora_gate.load_state_dict(gate)
        return set_peft_model_state_dict(model, student, adapter_name=STUDENT)
    student, teacher = saving.split_factors(saved, saving.experts_by_key(model))
    student = saving.drop_base_weights(student)  # the model has its own, less the initial product
    current = get_peft_model_state_dict(model, adapter_name=TEACHER)
    if not all(torch.equal(current[key], tensor.to(current[key])) for key, tensor in teacher.items()):
        if four_bit.is_four_bit(model):
            raise BALoraError(
                f"{model_id} belongs to another residual than the one quantized here; load it with "
                "BALoraModel.from_pretrained on the model in full precision"
            )
        shift_base_weights(model, +1)
        set_peft_model_state_dict(model, teacher, adapter_name=TEACHER)
        shift_base_weights(model, -1)
    return set_peft_model_state_dict(model, student, adapter_name=STUDENT)
