"""Parameter overhead: what is trained, as a share of what the model consists of."""

from peft import PeftModel
from transformers import PreTrainedModel

from balora.adapters.teacher import TEACHER
from balora.utils.modules import trainable_parameters


def parameter_overhead(model: PreTrainedModel | PeftModel) -> dict[str, float]:
    """Trainable parameters over all that the adapted model computes with.

    Those are the base model's, adapters included. The teacher's frozen factors and the untrained original of a module
    that is trained in full are not among them; a weight in 4 bits counts as one, and a tied one once.

    Returns:
        `trainable_parameters`, `total_parameters`, and `parameter_overhead`, their ratio in [0, 1]; 0 where nothing
        was trained.
    """
    all_parameters = model.get_nb_trainable_parameters()[1] if isinstance(model, PeftModel) else model.num_parameters()
    kept_beside = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not {TEACHER, "original_module"}.isdisjoint(name.split("."))
    )
    trainable, total = trainable_parameters(model), all_parameters - kept_beside
    return {"trainable_parameters": trainable, "total_parameters": total, "parameter_overhead": trainable / total}
