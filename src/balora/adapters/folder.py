"""An adapter's folder as a stranger may have left it: read as data, held against itself before anything is built."""

import json
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.utils.loading import MISFITS, first_line

PEFT_FILE = "adapter_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object that stands in a JSON file.

    Raises:
        BALoraError: If there is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BALoraError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise BALoraError(f"{path} is damaged: it holds no object")
    return content


def read_peft_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What stands in an adapter's `adapter_config.json`.

    Raises:
        BALoraError: If it cannot be read, or names a module for PEFT to import (Megatron's).
    """
    path = Path(folder) / PEFT_FILE
    settings = read_json(path)
    if settings.get("megatron_config"):
        raise BALoraError(f"{path}: megatron_config has PEFT import a module by name; leave it out")
    return settings


def read_weights(folder: str | os.PathLike[str], device: Any, *, use_safetensors: bool = True) -> dict[str, Tensor]:
    """An adapter's tensors.

    Args:
        folder: A local one.
        device: For the tensors.
        use_safetensors: Refuse a pickle; otherwise tensors alone are read from one (PyTorch's `weights_only`).

    Raises:
        BALoraError: If there are none, they are a pickle, or the file is damaged.
    """
    folder = Path(folder)
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        if not (folder / WEIGHTS_NAME).is_file():
            raise BALoraError(f"adapter: {folder} has no weights, {SAFETENSORS_WEIGHTS_NAME}")
        if use_safetensors:
            raise BALoraError(
                f"adapter: {folder} has no {SAFETENSORS_WEIGHTS_NAME}, and {WEIGHTS_NAME} is a pickle; save it with "
                "safetensors, as PEFT's save_pretrained does"
            )
    try:
        return load_peft_weights(str(folder), device=str(device))
    except (*MISFITS, OSError, SafetensorError, UnpicklingError, EOFError) as error:
        raise BALoraError(f"adapter: {folder}'s weights cannot be read: {first_line(error)}") from error


def check_ranks(folder: str | os.PathLike[str], settings: dict[str, Any], state: dict[str, Tensor]) -> None:
    """See that no rank is above what the weights have, before a matrix of that rank is made.

    Raises:
        BALoraError: If one is, or the settings have none.
    """
    rows = [tensor.shape[-2] for key, tensor in state.items() if "lora_A" in key and tensor.ndim > 1]
    pattern = settings.get("rank_pattern") or {}
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    for rank in ranks:
        if type(rank) is not int or not 1 <= rank <= max(rows, default=0):
            raise BALoraError(
                f"{Path(folder) / PEFT_FILE}: rank {str(rank)[:20]} is none of its weights', which have at most "
                f"{max(rows, default=0)}"
            )


def put_on(
    base: PreTrainedModel, folder: str | os.PathLike[str], *, is_trainable: bool = False
) -> tuple[PeftModel, Any]:
    """A model with an adapter of any kind on it, and what PEFT says of the keys that one of the two sides lacks.

    Args:
        base: The model.
        folder: The adapter's, its weights seen to be readable (`read_weights`).
        is_trainable: As in PEFT.

    Raises:
        BALoraError: If it does not fit; keys that are left over are no error to PEFT, and left to the caller.
    """
    try:
        model = PeftModel.from_pretrained(base, folder, is_trainable=is_trainable)
        # Once more, since only this tells.
        return model, model.load_adapter(folder, model.active_adapter, is_trainable=is_trainable)
    except MISFITS as error:
        raise BALoraError(f"adapter: {folder} does not fit {type(base).__name__}: {first_line(error)}") from error


def refuse_partial(folder: str | os.PathLike[str], model: str, loaded: Any, name: str) -> None:
    """Stop where weights of the adapter, or places for them, are left over: it is another model's.

    Args:
        folder: The adapter's, for the error.
        model: The model's class, for the error.
        loaded: What PEFT's loading returned.
        name: The adapter's.

    Raises:
        BALoraError: If so.
    """
    missing = [key for key in loaded.missing_keys if "lora_" in key and f".{name}." in f"{key}."]
    if wrong := [*loaded.unexpected_keys, *missing]:
        raise BALoraError(
            f"adapter: {folder} does not fit {model}: {wrong[0][:200]} is in one of the two alone; give the model "
            "that it was trained on"
        )
