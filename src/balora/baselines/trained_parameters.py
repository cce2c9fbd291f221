"""The parameters that BitFit and bottleneck adapters train, saved apart from the rest of the model."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from balora.baselines.bottleneck import BottleneckAdapter, make_bottleneck
from balora.errors import BALoraError
from balora.utils.loading import LOAD_ERRORS, first_line

TRAINED_FILE = "trained_parameters.safetensors"
#: Metadata of that file: the kind of bottleneck adapter, which the tensors do not tell.
KIND = "bottleneck"


def save_trained_parameters(model: PreTrainedModel, directory: Path) -> None:
    """Write a model's trainable parameters, and its configuration."""
    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    kinds = {module.kind for module in model.modules() if isinstance(module, BottleneckAdapter)}
    save_file(trained, directory / TRAINED_FILE, metadata={KIND: kinds.pop()} if kinds else None)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)


@torch.no_grad()
def load_trained_parameters(model: PreTrainedModel, folder: str | os.PathLike[str]) -> PreTrainedModel:
    """Load what `save_trained_parameters` wrote into the pretrained model, with its bottleneck adapters if it has any.

    Args:
        model: Changed in place; afterwards the loaded parameters are its trainable ones.
        folder: Folder of the file.

    Raises:
        BALoraError: If the file is damaged, or does not fit the model.
    """
    file = Path(folder) / TRAINED_FILE
    try:
        with safe_open(file, "pt") as tensors:
            kind = (tensors.metadata() or {}).get(KIND)
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, *LOAD_ERRORS) as error:
        raise BALoraError(f"adapter: {file} cannot be read: {first_line(error)}") from error
    sizes = [len(tensor) for name, tensor in state.items() if name.endswith("bottleneck.down.weight")]
    if sizes and kind is None:
        raise BALoraError(f"adapter: {file} does not say whether it is houlsby or pfeiffer; train it again")
    if sizes:
        make_bottleneck(kind, model, bottleneck_size=sizes[0])
    parameters = dict(model.named_parameters())
    for name, tensor in state.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise BALoraError(f"adapter: {file} does not fit {type(model).__name__}, because of {name}")
        parameters[name].copy_(tensor)
    for name, parameter in parameters.items():
        parameter.requires_grad = name in state
    return model
