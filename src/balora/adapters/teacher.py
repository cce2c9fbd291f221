"""The teacher: the pretrained function, seen through the adapted model without a second copy of it.

Where an adapter only adds to the weight (LoRA, rsLoRA, DoRA), passing by it is exact. A residual method (PiSSA,
OLoRA) has moved part of each weight into the adapter, so the base alone is not the pretrained model; a second, frozen
adapter holds that part, W = W_res + scaling·B₀·A₀, and the teacher pass runs through it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from balora.adapters.matrices import adapted_matrices
from balora.errors import BALoraError
from balora.utils.modules import evaluation_mode

STUDENT = "default"
TEACHER = "teacher"


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The adapted layers by their name in the base model; of experts, the wrapper of each parameter."""
    return {name: m for name, m in model.get_base_model().named_modules() if isinstance(m, LoraLayer)}


def attach_teacher(model: PeftModel) -> None:
    """Freeze a copy of the student's present factors beside it, and take their product out of the base weights.

    Afterwards the teacher is the function the base was before the call.
    """
    modules = {name for name, layer in lora_layers(model).items() if not isinstance(layer, ParamWrapper)}
    config = replace(
        model.peft_config[STUDENT],
        target_modules=modules,  # target_parameters stay: PEFT wants those of all adapters to be the same
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
    # Straight from PeftModel: the classification subclass would also copy the head, which teacher and student share.
    PeftModel.add_adapter(model, TEACHER, config)
    copy_factors(model, STUDENT, TEACHER)
    move_base(model, -1)


@torch.no_grad()
def copy_factors(model: PeftModel, source: str, target: str) -> None:
    """Copy A and B of one adapter onto another of the same rank."""
    for layer in lora_layers(model).values():
        layer.lora_A[target].weight.copy_(layer.lora_A[source].weight)
        layer.lora_B[target].weight.copy_(layer.lora_B[source].weight)


def move_base(model: PeftModel, sign: int) -> None:
    """Add (+1) the teacher's product to the base weights, or take it out (−1), rounding once."""
    for layer in lora_layers(model).values():
        for matrix in adapted_matrices(layer, TEACHER):
            matrix.move(sign)


@contextmanager
def student_aside(model: PeftModel, *, live_head: bool = False) -> Iterator[None]:
    """Within, the layers compute the pretrained function; modes and gradients are the caller's.

    Args:
        model: The adapted model.
        live_head: Leave modules trained in full outside the backbone, the classification head, as they are being
            trained. Otherwise they step aside as adapters do.

    Raises:
        BALoraError: If adapters are merged into the weights, where no teacher can be told apart.
    """
    base = model.get_base_model()
    trained_in_full = getattr(base, base.base_model_prefix) if live_head else base
    switches = [m for m in base.modules() if isinstance(m, BaseTunerLayer)]
    switches += [m for m in trained_in_full.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    if any(isinstance(m, BaseTunerLayer) and m.merged for m in switches):
        raise BALoraError(
            "the adapter is merged into the weights, so no teacher is left: call unmerge_adapter() first"
        )
    active = [m._active_adapter for m in switches]
    try:
        for module in switches:
            # The public setters also flip requires_grad, which a pass must not.
            module._active_adapter = [TEACHER] if isinstance(module, LoraLayer) and TEACHER in module.r else []
        yield
    finally:
        for module, names in zip(switches, active, strict=True):
            module._active_adapter = names


@contextmanager
def as_teacher(model: PeftModel, *, live_head: bool) -> Iterator[None]:
    """`student_aside` in evaluation mode and without gradient: what the objective calls the teacher.

    Modes and active adapters are exactly as before on leaving, so that a student pass recomputed later in a backward
    pass (gradient checkpointing) meets the state it first ran under.
    """
    with evaluation_mode(model), torch.no_grad(), student_aside(model, live_head=live_head):
        yield
