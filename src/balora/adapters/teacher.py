"""The teacher: the pretrained function, computed by the adapted model itself without a second copy of the weights.

If an adapter only adds to the weight (LoRA, rsLoRA, DoRA), disabling it gives the pretrained model exactly. A residual
method (PiSSA, OLoRA) has moved part of each weight into the adapter, so the base alone is not the pretrained model; a
second, frozen adapter holds that part, W = W_res + scaling·B₀·A₀, and is active in the teacher pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from balora.adapters.matrices import adapted_matrices
from balora.adapters.new_modules import is_new
from balora.errors import BALoraError
from balora.utils.distributed import is_sharded
from balora.utils.modules import evaluation_mode

#: Names of the trained adapter, and of the frozen one that a residual method adds.
STUDENT = "default"
TEACHER = "teacher"


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """Return the adapted layers by name in the base model; for experts, each parameter's wrapper."""
    return {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}


def attach_teacher(model: PeftModel) -> None:
    """Add a frozen copy of the student's factors, and subtract their product from the base weights.

    Afterwards the teacher is the function that the base computed before the call.
    """
    modules = {name for name, layer in lora_layers(model).items() if not isinstance(layer, ParamWrapper)}
    config = replace(
        model.peft_config[STUDENT],
        target_modules=modules,  # target_parameters stay: PEFT requires the same ones for all adapters
        layers_to_transform=None,
        layers_pattern=None,
        exclude_modules=None,
        modules_to_save=None,
        use_dora=False,
        lora_dropout=0.0,
        lora_bias=False,
        bias="none",
        inference_mode=True,
    )
    # PeftModel's own method: the classification subclass would also copy the head, which teacher and student share.
    PeftModel.add_adapter(model, TEACHER, config)
    copy_factors(model, STUDENT, TEACHER)
    shift_base_weights(model, -1)


@torch.no_grad()
def copy_factors(model: PeftModel, source: str, target: str) -> None:
    """Copy A and B of one adapter onto another of the same rank."""
    for layer in lora_layers(model).values():
        layer.lora_A[target].weight.copy_(layer.lora_A[source].weight)
        layer.lora_B[target].weight.copy_(layer.lora_B[source].weight)


def shift_base_weights(model: PeftModel, sign: int) -> None:
    """Add the teacher's product to the base weights (+1), or subtract it (−1), rounding once."""
    for layer in lora_layers(model).values():
        for matrix in adapted_matrices(layer, TEACHER):
            matrix.add_product(sign)


@contextmanager
def adapter_disabled(model: PeftModel, *, live_head: bool = False) -> Iterator[None]:
    """Context manager: the layers compute the pretrained function; training mode and gradients are unchanged.

    Args:
        model: The adapted model.
        live_head: Keep fully trained modules outside the backbone (the classification head), and newly initialized
            ones inside it, as trained so far. Otherwise their pretrained copies are used.

    Raises:
        BALoraError: If adapters are merged into the weights, so that the pretrained ones are gone.
    """
    base = model.get_base_model()
    trained_in_full = getattr(base, base.base_model_prefix) if live_head else base
    switches = [m for m in base.modules() if isinstance(m, BaseTunerLayer)]
    fully_trained = [m for m in trained_in_full.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    switches += [m for m in fully_trained if not (live_head and is_new(m))]
    if any(isinstance(m, BaseTunerLayer) and m.merged for m in switches):
        raise BALoraError(
            "the adapter is merged into the weights, so there is no teacher; call unmerge_adapter() first"
        )
    active = [m._active_adapter for m in switches]
    try:
        for module in switches:
            # PEFT's public setters also change requires_grad, which must stay as it is.
            module._active_adapter = [TEACHER] if isinstance(module, LoraLayer) and TEACHER in module.r else []
        yield
    finally:
        for module, names in zip(switches, active, strict=True):
            module._active_adapter = names


def is_untouched(model: nn.Module) -> bool:
    """Return whether an adapter of LoRA's kind changes nothing yet: its B is 0, and nothing else was trained."""
    if not isinstance(model, PeftModel) or getattr(model, "lora_bias_path", None) is not None or is_sharded(model):
        return False
    modules = list(model.get_base_model().modules())
    layers = [module for module in modules if isinstance(module, BaseTunerLayer)]
    in_full = [module for module in modules if isinstance(module, AuxiliaryTrainingWrapper)]
    frozen = all(config.bias == "none" for config in model.peft_config.values() if hasattr(config, "bias"))
    return (
        bool(layers)
        and frozen
        and all(isinstance(layer, LoraLayer) and _adds_nothing(layer) for layer in layers)
        and all(isinstance(module, ModulesToSaveWrapper) and _is_original(module) for module in in_full)
    )


def _adds_nothing(layer: LoraLayer) -> bool:
    if TEACHER in layer.r or layer.lora_magnitude_vector or layer.lora_embedding_B:
        return False
    return all(not getattr(b, "weight", b).any() and getattr(b, "bias", None) is None for b in layer.lora_B.values())


def _is_original(module: ModulesToSaveWrapper) -> bool:
    original = module.original_module.state_dict()
    return all(
        torch.equal(value, original[name])
        for copy in module.modules_to_save.values()
        for name, value in copy.state_dict().items()
    )


@contextmanager
def teacher_mode(model: PeftModel, *, live_head: bool) -> Iterator[None]:
    """Context manager: `adapter_disabled` in evaluation mode and without gradient, for a teacher pass.

    Modes and active adapters are restored exactly, so that a student pass recomputed in the backward pass (gradient
    checkpointing) runs in its original state.
    """
    with evaluation_mode(model), torch.no_grad(), adapter_disabled(model, live_head=live_head):
        yield
