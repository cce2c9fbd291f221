"""Reading an adapter folder from an untrusted source: as data only, and validated before a model is built."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from balora.adapters.teacher import adapter_disabled
from balora.errors import BALoraError
from balora.utils.loading import LOAD_ERRORS, first_line
from balora.utils.modules import evaluation_mode

PEFT_FILE = "adapter_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        BALoraError: If it cannot be read, or holds no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BALoraError(f"{path} is damaged: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise BALoraError(f"{path} is damaged: it does not hold a JSON object")
    return content


def read_peft_settings(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read an adapter's `adapter_config.json`.

    Raises:
        BALoraError: If it cannot be read, or makes PEFT import a module by name (`megatron_config`).
    """
    path = Path(folder) / PEFT_FILE
    settings = read_json(path)
    if settings.get("megatron_config"):
        raise BALoraError(f"{path}: megatron_config makes PEFT import a module by name; leave it out")
    return settings


def read_weights(folder: str | os.PathLike[str], device: Any, *, use_safetensors: bool = True) -> dict[str, Tensor]:
    """Read an adapter's tensors.

    Args:
        folder: A local folder.
        device: Device of the tensors.
        use_safetensors: Refuse pickles; otherwise only tensors are read from one (PyTorch's `weights_only`).

    Raises:
        BALoraError: If there is no file, it is a pickle, or it is damaged.
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
    except (*LOAD_ERRORS, OSError, SafetensorError, UnpicklingError, EOFError) as error:
        raise BALoraError(f"adapter: {folder}'s weights cannot be read: {first_line(error)}") from error


def check_ranks(folder: str | os.PathLike[str], settings: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Check that the configured ranks do not exceed those of the weights, before memory is allocated for them.

    Raises:
        BALoraError: If a rank is too large, missing or not a positive integer.
    """
    first = ("lora_A", "lora_embedding_A")
    rows = [tensor.shape[-2] for key, tensor in state.items() if any(a in key for a in first) and tensor.ndim > 1]
    pattern = settings.get("rank_pattern") or {}
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else [None])]
    for rank in ranks:
        if type(rank) is not int or not 1 <= rank <= max(rows, default=0):
            raise BALoraError(
                f"{Path(folder) / PEFT_FILE}: rank {str(rank)[:20]} does not fit the weights, whose rank is at most "
                f"{max(rows, default=0)}; use the file that was saved with them"
            )


@dataclass(frozen=True)
class BaseFunction:
    """The pretrained function before an adapter is loaded, to compare with the same model, adapter disabled, after.

    PEFT's PiSSA, OLoRA and CorDA change the base's weights while they load, and so do adapters saved with trained
    biases or embeddings: disabling them does not give the pretrained function.

    Attributes:
        weights: Every parameter, with its address and version.
        probe: Inputs of a few tokens.
        logits: The base's for `probe`.
    """

    weights: list[tuple[Tensor, int, int]]
    probe: dict[str, Tensor]
    logits: Tensor

    @classmethod
    def of(cls, base: PreTrainedModel) -> "BaseFunction":
        """Record a model's weights and logits."""
        ids = torch.arange(3, 11, device=base.device)[None] % base.config.get_text_config().vocab_size
        probe = {"input_ids": ids} | ({"decoder_input_ids": ids} if base.config.is_encoder_decoder else {})
        with evaluation_mode(base), torch.no_grad():
            logits = base(**probe).logits
        return cls([(p, p.data_ptr(), p._version) for p in base.parameters()], probe, logits)

    def is_restored(self, model: PeftModel) -> bool:
        """Return whether the adapted model computes the same function to the bit when its adapter is disabled."""
        present = set(map(id, model.parameters()))
        for weight, address, version in self.weights:
            if id(weight) not in present or (weight.data_ptr(), weight._version) != (address, version):
                return False
        # The inner model leaves out trained prompts as well, which are no layers.
        with evaluation_mode(model), torch.no_grad(), adapter_disabled(model):
            return torch.equal(model.get_base_model()(**self.probe).logits, self.logits)


def resize_to_adapter(base: PreTrainedModel, state: Mapping[str, Tensor]) -> int | None:
    """Resize a model's token embeddings to those that an adapter saved, so that they can be loaded.

    Args:
        base: Changed in place.
        state: The adapter's tensors.

    Returns:
        The number of tokens that both have; `None` if the adapter has no embeddings, or as many.
    """
    embeddings = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embeddings)
    keys = (f"base_model.model.{name}{inner}.weight" for inner in ("", ".base_layer"))
    saved = next((state[key] for key in keys if key in state), None)
    own = embeddings.weight.shape[0]
    if saved is None or len(saved) == own:
        return None
    base.resize_token_embeddings(len(saved), mean_resizing=False)
    return min(own, len(saved))


def compare_first_tokens(models: Iterable[nn.Module], tokens: int) -> None:
    """Cut the logits of language models to their first tokens `(…, tokens)`, those that both models have."""

    def cut(module: nn.Module, args: tuple, output: Any) -> None:
        output.logits = output.logits[..., :tokens]

    for model in models:
        model.register_forward_hook(cut)


def load_adapter(
    base: PreTrainedModel, folder: str | os.PathLike[str], *, is_trainable: bool = False
) -> tuple[PeftModel, Any]:
    """Load an adapter of any PEFT method onto a model; also return PEFT's report of missing and unexpected keys.

    Args:
        base: The model.
        folder: The adapter's folder, validated by `read_weights`.
        is_trainable: As in PEFT.

    Raises:
        BALoraError: If it does not fit. Missing and unexpected keys are not an error here; the caller checks them.
    """
    try:
        # As PeftModel.from_pretrained, which drops load_adapter's report. Loading a second time to get it would cut
        # AdaLoRA's layers, which have the saved ranks by then, once more.
        config = PeftConfig.from_pretrained(folder)
        config.inference_mode = config.is_prompt_learning or not is_trainable
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The following rank_pattern keys")  # AdaLoRA's are of another form
            model = kind(base, config)
        mapping = {} if config.is_prompt_learning else getattr(base, "_checkpoint_conversion_mapping", {})
        trainable = not config.inference_mode
        loaded = model.load_adapter(folder, model.active_adapter, is_trainable=trainable, key_mapping=mapping)
        return model.train(trainable), loaded
    except LOAD_ERRORS as error:
        raise BALoraError(f"adapter: {folder} does not fit {type(base).__name__}: {first_line(error)}") from error


def check_all_weights_loaded(
    folder: str | os.PathLike[str], model: str, loaded: Any, name: str, prefix: str = "lora_"
) -> None:
    """Check PEFT's loading report: no key of the adapter may be missing or unexpected.

    Args:
        folder: The adapter's folder, for the error.
        model: Name of the model's class, for the error.
        loaded: PEFT's report.
        name: Name of the adapter.
        prefix: Part of the names of the method's parameters, as in PEFT's `PEFT_TYPE_TO_PREFIX_MAPPING`.

    Raises:
        BALoraError: If a key is missing or unexpected: the adapter belongs to another model.
    """
    missing = [key for key in loaded.missing_keys if prefix in key and f".{name}." in f"{key}."]
    unexpected = [key for key in loaded.unexpected_keys if key != "prompt_embeddings"]  # PEFT reads it by itself
    if wrong := [*unexpected, *missing]:
        raise BALoraError(
            f"adapter: {folder} does not fit {model}: {wrong[0][:200]} is in only one of the two; give the model "
            "that it was trained on"
        )
