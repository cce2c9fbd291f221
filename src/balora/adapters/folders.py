"""An adapter's folder, written, and read back into a model; `balora.adapters.saving` says what is in it."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import save_file

from balora.adapters import bias_path, four_bit, saving
from balora.adapters.teacher import STUDENT, TEACHER, move_base
from balora.errors import BALoraError
from balora.sharding import CHECKPOINTED

if TYPE_CHECKING:
    from balora.adapters.adapted import AdaptedModel


def write_adapter(model: "AdaptedModel", directory: Path, name: str, read: dict[str, Any]) -> None:
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


def load_student(model: "AdaptedModel", model_id: str | os.PathLike) -> Any:
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
