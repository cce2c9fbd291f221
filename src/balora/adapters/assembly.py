"""Build an adapted model from a pretrained one, by a configuration or from a saved folder."""

import os
from collections.abc import Mapping
from pathlib import Path

from peft import TaskType
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from transformers import PreTrainedModel

from balora.adapters import four_bit, loading, model_checks, saving, targets
from balora.adapters.adapted import AdaptedModel
from balora.adapters.bias_path import make_bias_embedding
from balora.adapters.fused_linear import use_fused_linear
from balora.adapters.new_modules import check_new_modules_saved, mark_new_modules
from balora.adapters.oplora import project_updates
from balora.adapters.selora import add_sentence_gates
from balora.adapters.task_adapters import add_task_adapters, check_adapter_names
from balora.adapters.teacher import STUDENT, attach_teacher, lora_layers
from balora.adapters.trained_in_full import train_in_float32
from balora.config import FROZEN_A, BALoraConfig, check_task_names
from balora.errors import BALoraError
from balora.utils.loading import LOAD_ERRORS, first_line

#: Class of the adapted model by PEFT task type.
ModelClasses = Mapping[str, type[AdaptedModel]]


def assemble(classes: ModelClasses, model: PreTrainedModel, config: BALoraConfig) -> AdaptedModel:
    """Add the adapter that a configuration describes, with PEFT's initialization and its method's extra parts.

    Args:
        classes: Class to build, by task type.
        model: The base model; changed in place.
        config: Configuration with task type and published values filled in.

    Raises:
        BALoraError: If a target matches nothing, or the method does not fit a target.
    """
    targets.check_targets(model, config.lora_config())
    if config.task_type == TaskType.SEQ_CLS:
        mark_new_modules(model)
    check_adapter_names(model, config.task_names or [])
    bias = make_bias_embedding(model, config) if config.bias_path_weight else None
    try:
        adapted = classes[config.task_type](model, config)
    except (ValueError, TypeError) as error:
        targets.explain_peft_error(error)
        raise
    if config.task_names is None:
        targets.warn_about_skipped_layers(adapted, config)
    else:
        adapted.task_rows = add_task_adapters(adapted, config.task_names, inference_mode=config.inference_mode)
    use_fused_linear(adapted)
    train_in_float32(adapted)
    if config.initialization in FROZEN_A:
        freeze_lora_a(lora_layers(adapted), STUDENT)
    if config.initialization == "oplora" and not config.inference_mode:  # saved factors are projected already
        project_updates(lora_layers(adapted), config)
    if config.gated:
        adapted.lora_gate = add_sentence_gates(adapted, config)
    adapted.lora_bias_path = bias
    return adapted


def freeze_lora_a(layers: dict[str, LoraLayer], adapter_name: str) -> None:
    """Freeze every A of an adapter (LoRA-FA, Zhang et al. 2023), so that ΔW stays in the row space of A.

    PEFT's `set_adapter` makes A trainable again; call this after it.

    Args:
        layers: The adapted layers by name.
        adapter_name: Name of the adapter.

    Raises:
        BALoraError: If a layer is an embedding, whose A is initialized to zero, so that B alone could learn nothing.
    """
    for name, layer in layers.items():
        if adapter_name not in layer.lora_A:
            raise BALoraError(
                f"target_modules: {name} is a {type(layer.get_base_layer()).__name__}, whose A is zero at the start "
                "and frozen by this method; leave it out or use method='lora'"
            )
        layer.lora_A[adapter_name].requires_grad_(False)


def load_adapted(
    classes: ModelClasses, model: PreTrainedModel, model_id: str | os.PathLike, *, is_trainable: bool = False
) -> AdaptedModel:
    """Load an adapter that `AdaptedModel.save_pretrained` wrote, teacher included.

    Args:
        classes: Class to build, by task type.
        model: The unmodified base model; changed in place. If balora quantized it in training, pass it in full
            precision: the same weights are quantized in the same way.
        model_id: Folder that balora wrote.
        is_trainable: Whether to resume training; otherwise the adapter is frozen and in evaluation mode.

    Raises:
        BALoraError: If the folder is not balora's or does not fit the base model.
    """
    settings = saving.read_settings(model_id)
    residuals = saving.holds_residuals(settings)
    names = settings.get("task_names") or []
    check_task_names(names)
    folders = {name: Path(model_id) / name for name in names} or {STUDENT: Path(model_id)}
    lora_config = saving.read_lora_config(next(iter(folders.values())))
    states = {name: loading.read_weights(path, model.device) for name, path in folders.items()}
    student = next(iter(states.values()))
    for name, path in folders.items():
        loading.check_ranks(path, vars(lora_config), states[name])
        check_new_modules_saved(model, model_id, states[name])
    try:
        config = saving.config_from_saved(lora_config, settings)
    except BALoraError as error:
        raise BALoraError(f"{model_id}: {error}") from error
    config.inference_mode = not is_trainable
    kind = type(model).__name__
    model_checks.check_unadapted(model)
    try:
        in_four_bits = four_bit.layers_to_quantize(model, config)
        adapted = assemble(classes, model, config)
        if config.residual:
            states[STUDENT], teacher = saving.split_factors(student, saving.experts_by_key(adapted))
            set_peft_model_state_dict(adapted, states[STUDENT] | teacher, adapter_name=STUDENT)
            attach_teacher(adapted)
            if not residuals:
                states[STUDENT] = saving.drop_base_weights(states[STUDENT])
        if adapted.lora_gate is not None:
            states[STUDENT], gate = saving.split_gate(student)
            adapted.lora_gate.load_state_dict(gate)
        four_bit.quantize(adapted, in_four_bits)
        for name, state in states.items():
            loaded = set_peft_model_state_dict(adapted, state, adapter_name=name)
            loading.check_all_weights_loaded(model_id, kind, loaded, name)
        if adapted.lora_bias_path is not None and is_trainable:
            adapted.load_bias_direction(model_id)
    except BALoraError:
        raise
    except LOAD_ERRORS as error:
        raise BALoraError(f"{model_id} does not fit {kind}: {first_line(error)}") from error
    return adapted.train(is_trainable)
