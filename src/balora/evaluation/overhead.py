"""Parameter overhead: trained parameters as a share of all parameters."""

from peft import PeftModel
from transformers import PreTrainedModel

from balora.adapters.teacher import TEACHER
from balora.utils.modules import trainable_parameters


def parameter_overhead(model: PreTrainedModel | PeftModel) -> dict[str, float]:
    """Count trainable parameters and all parameters that the adapted model computes with.

    These are the base model's parameters and the adapters. The teacher's frozen factors and the untrained original of
    a fully trained module do not count; a 4-bit weight counts as one, and a tied weight counts once.

    Returns:
        `trainable_parameters`, `total_parameters`, and `parameter_overhead`, their ratio in [0, 1], which is 0 if
        nothing is trained.
    """
    all_parameters = model.get_nb_trainable_parameters()[1] if isinstance(model, PeftModel) else model.num_parameters()
    kept_beside = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not {TEACHER, "original_module"}.isdisjoint(name.split("."))
    )
    trainable, total = trainable_parameters(model), all_parameters - kept_beside
    return {"trainable_parameters": trainable, "total_parameters": total, "parameter_overhead": trainable / total}
