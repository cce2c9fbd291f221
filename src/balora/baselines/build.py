"""From a pretrained model and the name of a rival method to a model that any trainer takes."""

from torch import nn
from transformers import PreTrainedModel

from balora.baselines.bottleneck import add_bottlenecks
from balora.baselines.whole import freeze_but, task_heads, train_all, train_biases
from balora.errors import BALoraError

RIVALS = ("full", "bitfit", "houlsby", "pfeiffer")


def make_rival(
    model: PreTrainedModel, method: str, *, modules_to_save: list[str] | None = None, bottleneck_size: int = 16
) -> PreTrainedModel:
    """Set a pretrained model up for one of `RIVALS`, in place. It starts as exactly the pretrained function.

    What a rival saves is a whole model, adapters included: `load_state_dict` into a rival made alike takes it back.

    Args:
        model: The pretrained model; changed in place.
        method: `full`, all parameters; `bitfit`, biases; `houlsby` or `pfeiffer`, bottleneck adapters. All train the
            task head too.
        modules_to_save: Last parts of the names of further modules to train in full, as in PEFT's `LoraConfig`.
        bottleneck_size: Width m of a bottleneck adapter.

    Returns:
        The same model.

    Raises:
        BALoraError: If the method is unknown, a name in `modules_to_save` matches nothing, or the method does not fit
            the model (BitFit without biases, bottlenecks in an unknown architecture).
    """
    if method not in RIVALS:
        raise BALoraError(f"method: unknown {method!r}; there are {', '.join(RIVALS)}")
    heads = task_heads(model, modules_to_save)
    if method == "full":
        train_all(model)
    elif method == "bitfit":
        train_biases(model, heads)
    else:
        freeze_but(model, heads)
        add_bottlenecks(model, method, bottleneck_size)
    return model


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers an optimizer would change; a tied weight counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
