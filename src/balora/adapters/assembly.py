"""Put an adapter on a pretrained model, from a configuration or from a saved folder."""

import os
from collections.abc import Mapping
from pathlib import Path

from peft.utils import set_peft_model_state_dict
from transformers import PreTrainedModel

from balora.adapters import folder, four_bit, saving, targets
from balora.adapters.adapted import AdaptedModel
from balora.adapters.bias_path import make_bias_embedding
from balora.adapters.fused_linear import use_fused_linear
from balora.adapters.initialization import freeze_down_projections
from balora.adapters.selora import attach_gates
from balora.adapters.task_adapters import attach_tasks, check_adapter_names
from balora.adapters.teacher import STUDENT, attach_teacher, lora_layers
from balora.config import SELORA, BALoraConfig, check_task_names
from balora.errors import BALoraError
from balora.utils.loading import MISFITS, first_line

#: The class of the adapted model, by PEFT's task type.
ModelClasses = Mapping[str, type[AdaptedModel]]


def assemble(classes: ModelClasses, model: PreTrainedModel, config: BALoraConfig) -> AdaptedModel:
    """Attach the adapter that a configuration describes, at PEFT's start, with all that its method needs.

    Args:
        classes: The class to build, by task type.
        model: The base model; changed in place.
        config: With its task type and published values filled in.

    Raises:
        BALoraError: If a target matches nothing, or the method does not fit a target.
    """
    targets.check_targets(model, config.lora_config())
    check_adapter_names(model, config.task_names or [])
    bias = make_bias_embedding(model, config) if config.bias_path_weight else None
    try:
        adapted = classes[config.task_type](model, config)
    except ValueError as error:
        targets.refuse_without_parameters(error)
        raise
    if config.task_names is None:
        targets.warn_of_passed_over(adapted, config)
    else:
        adapted.task_rows = attach_tasks(adapted, config.task_names, inference_mode=config.inference_mode)
    use_fused_linear(adapted)
    if config.residual:
        targets.refuse_shared_weights(lora_layers(adapted), model)
    if config.method == "lora-fa":
        freeze_down_projections(lora_layers(adapted), STUDENT)
    if config.method == SELORA:
        adapted.lora_gate = attach_gates(adapted, config)
    adapted.lora_bias_path = bias
    return adapted


def load_adapted(
    classes: ModelClasses, model: PreTrainedModel, model_id: str | os.PathLike, *, is_trainable: bool = False
) -> AdaptedModel:
    """Load what `AdaptedModel.save_pretrained` wrote, teacher included.

    Args:
        classes: The class to build, by task type.
        model: The untouched base model; changed in place. If balora quantized it, again in full precision: the same
            weights are quantized the same way.
        model_id: Folder that balora wrote.
        is_trainable: Whether to resume training; otherwise the adapter is frozen and in evaluation mode.

    Raises:
        BALoraError: If the folder is not balora's or does not fit the base model.
    """
    settings = saving.read_settings(model_id)
    names = settings.get("task_names") or []
    check_task_names(names)
    folders = {name: Path(model_id) / name for name in names} or {STUDENT: Path(model_id)}
    lora_config = saving.read_lora_config(next(iter(folders.values())))
    states = {name: folder.read_weights(path, model.device) for name, path in folders.items()}
    student = next(iter(states.values()))
    for name, path in folders.items():
        folder.check_ranks(path, vars(lora_config), states[name])
    try:
        config = saving.config_from_saved(lora_config, settings)
    except BALoraError as error:
        raise BALoraError(f"{model_id}: {error}") from error
    config.inference_mode = not is_trainable
    kind = type(model).__name__
    try:
        in_four_bits = four_bit.layers_to_quantize(model, config)
        adapted = assemble(classes, model, config)
        if config.residual:
            states[STUDENT], teacher = saving.split_factors(student, saving.experts_by_key(adapted))
            set_peft_model_state_dict(adapted, states[STUDENT] | teacher, adapter_name=STUDENT)
            attach_teacher(adapted)
        if adapted.lora_gate is not None:
            states[STUDENT], gate = saving.split_gate(student)
            adapted.lora_gate.load_state_dict(gate)
        four_bit.quantize(adapted, in_four_bits)
        for name, state in states.items():
            loaded = set_peft_model_state_dict(adapted, state, adapter_name=name)
            folder.refuse_partial(model_id, kind, loaded, name)
        if adapted.lora_bias_path is not None and is_trainable:
            adapted.load_bias_direction(model_id)
    except BALoraError:
        raise
    except MISFITS as error:
        raise BALoraError(f"{model_id} does not fit {kind}: {first_line(error)}") from error
    return adapted.train(is_trainable)
