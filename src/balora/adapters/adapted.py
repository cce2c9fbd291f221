"""PEFT's model as balora changes it: where the teacher is, what an adapter merges to, how it is saved and loaded.

`balora.model` adds training to it.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from balora.adapters import four_bit, saving, semantic
from balora.adapters.gates import SentenceGate
from balora.adapters.teacher import STUDENT, TEACHER, move_base, student_aside
from balora.config import BALoraConfig
from balora.errors import BALoraError


class AdaptedModel(PeftModel):
    """A pretrained model with the adapter that is trained, and all that its teacher takes.

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
        self.drift: dict[str, float] | None = None

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
        self.lora_gate = None
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
