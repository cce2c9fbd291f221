"""From a pretrained model and a configuration, or a saved adapter, to a `BALoraModel`."""

import os
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from peft import TaskType
from peft.utils import set_peft_model_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from balora.adapters import four_bit, reading, saving, targets
from balora.adapters.bias_path import load_direction, make_bias_embedding
from balora.adapters.data_starts import start_corda, start_lora_ga
from balora.adapters.lean import make_lean
from balora.adapters.lora_fa import freeze_down_projections
from balora.adapters.semantic import attach_gates
from balora.adapters.starts import start_residual
from balora.adapters.task_rows import attach_tasks, check_names
from balora.adapters.teacher import STUDENT, attach_teacher, lora_layers
from balora.config import FROM_DATA, SELORA, BALoraConfig
from balora.config_checks import check_task_names
from balora.errors import BALoraError
from balora.loading import MISFITS, first_line
from balora.model import BALoraModel
from balora.schedule import weights_at
from balora.sharding import refuse_missing_weights
from balora.tasks import MODEL_CLASSES, task_of


def get_balora_model(
    model: PreTrainedModel, config: BALoraConfig, start_batches: Iterable[dict[str, Tensor]] | None = None
) -> BALoraModel:
    """Put an adapter on a pretrained model, as `peft.get_peft_model` does, with a teacher and an objective.

    Args:
        model: A causal or sequence-to-sequence language model or a sequence classifier; changed in place. In 4 bits
            if Transformers loaded it so; in full precision for a residual method, which quantizes what it leaves
            (`BALoraConfig.quantization_config`).
        config: Left as it is; the model keeps a copy with the task type and the published values filled in.
        start_batches: Model inputs that `lora-ga` and `corda` start from, read once; other methods read none. A run on
            several processes gives each the same ones.

    Raises:
        BALoraError: If the model's task is not supported, a target module matches nothing, the method's batches are
            missing, or a weight is quantized that would have to be split.
    """
    if config.method in FROM_DATA and start_batches is None:
        raise BALoraError(
            f"start_batches: {config.method} starts from data; give get_balora_model some batches of model inputs"
        )
    config = replace(config)
    config.resolve(config.task_type or task_of(model))
    if config.task_type == TaskType.SEQ_CLS:
        _warn_of_constant_terms(model, config)
    if config.method == SELORA and config.target_modules is None:
        config.target_modules = targets.attention_projections(model)
    in_four_bits = four_bit.layers_to_quantize(model, config)
    adapted = _build(model, config)
    if config.residual:
        refuse_missing_weights(lora_layers(adapted), config.method)
        if config.method == "lora-ga":
            start_lora_ga(adapted, start_batches, settings=config.lora_ga_config, seed=config.seed)
        elif config.method == "corda":
            start_corda(adapted, start_batches, corda_method=config.corda_method)
        else:
            start_residual(lora_layers(adapted), STUDENT, config.method, niter=config.pissa_niter, seed=config.seed)
        attach_teacher(adapted)
    four_bit.quantize(adapted, in_four_bits)
    return adapted


def load_balora_model(
    model: PreTrainedModel, model_id: str | os.PathLike, *, is_trainable: bool = False
) -> BALoraModel:
    """Load what `BALoraModel.save_pretrained` wrote, teacher included, to use or to train further.

    Args:
        model: The base model, untouched; changed in place. Where balora quantized it, again in full precision: the
            same weights are quantized the same way.
        model_id: Folder that balora wrote.
        is_trainable: Whether to go on training; otherwise the adapter is frozen and in evaluation mode.

    Raises:
        BALoraError: If the folder is not balora's or does not fit the base model.
    """
    settings = saving.read_settings(model_id)
    names = settings.get("task_names") or []
    check_task_names(names)
    folders = {name: Path(model_id) / name for name in names} or {STUDENT: Path(model_id)}
    lora_config = saving.read_lora_config(next(iter(folders.values())))
    states = {name: reading.read_weights(path, model.device) for name, path in folders.items()}
    student = next(iter(states.values()))
    for name, path in folders.items():
        reading.check_ranks(path, vars(lora_config), states[name])
    try:
        config = saving.config_from_saved(lora_config, settings)
    except BALoraError as error:
        raise BALoraError(f"{model_id}: {error}") from error
    config.inference_mode = not is_trainable
    kind = type(model).__name__
    try:
        in_four_bits = four_bit.layers_to_quantize(model, config)
        adapted = _build(model, config)
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
            reading.refuse_partial(model_id, kind, loaded, name)
        if adapted.lora_bias_path is not None and is_trainable:
            load_direction(adapted, model_id)
    except BALoraError:
        raise
    except MISFITS as error:
        raise BALoraError(f"{model_id} does not fit {kind}: {first_line(error)}") from error
    return adapted.train(is_trainable)


def _build(model: PreTrainedModel, config: BALoraConfig) -> BALoraModel:
    targets.check_targets(model, config.lora_config())
    check_names(model, config.task_names or [])
    bias = make_bias_embedding(model, config) if config.bias_path_weight else None
    try:
        adapted = MODEL_CLASSES[config.task_type](model, config)
    except ValueError as error:
        targets.refuse_without_parameters(error)
        raise
    if config.task_names is None:
        targets.warn_of_passed_over(adapted, config)
    else:
        adapted.task_rows = attach_tasks(adapted, config.task_names, inference_mode=config.inference_mode)
    make_lean(adapted)
    if config.residual:
        targets.refuse_shared_weights(lora_layers(adapted), model)
    if config.method == "lora-fa":
        freeze_down_projections(lora_layers(adapted), STUDENT)
    if config.method == SELORA:
        adapted.lora_gate = attach_gates(adapted, config)
    adapted.lora_bias_path = bias
    return adapted


def _warn_of_constant_terms(model: PreTrainedModel, config: BALoraConfig) -> None:
    classes = model.config.num_labels
    if model.config.problem_type == "multi_label_classification" and any(weights_at(config, None).values()):
        raise BALoraError(
            "problem_type: the regularizers compare softmax distributions over classes, which multi-label outputs are "
            "not; set consistency_weight, diversity_weight and spectral_weight to 0"
        )
    if classes == 1 and any(weights_at(config, None).values()):
        warnings.warn(
            "balora: with one output the regularizers are constants; consistency is the squared error to the "
            "teacher's score instead, diversity and spectral are off"
        )
    elif config.spectral_weight and config.spectral_k >= classes > 1:
        done = f"k = {classes - 1} is used" if config.clip_spectral_k else "clip_spectral_k=True would use a smaller k"
        warnings.warn(
            f"balora: spectral_k = {config.spectral_k} with {classes} classes makes the spectral term −1 whatever the "
            f"logits; {done}"
        )
