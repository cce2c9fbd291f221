"""Safe loading of pretrained models and tokenizers: no remote code runs, and pickles are read only on request.

Transformers by default asks on the terminal whether to run a folder's code, and reads `pytorch_model.bin`.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from balora.errors import BALoraError
from balora.utils.gguf import dense_folder, is_gguf
from balora.utils.progress import working

#: Pickle files that Transformers reads if `use_safetensors` is false.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
#: Files of an adapter's folder.
ADAPTERS = ("adapter_config.json", "balora_config.json")
#: Errors that a model built from a damaged configuration, or filled with wrong tensors, may raise.
LOAD_ERRORS = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)


def load(auto: Any, name: str, setting: str, **settings: Any) -> Any:
    """Load a model, configuration or tokenizer; errors name the setting in one line.

    Args:
        auto: One of Transformers' Auto classes.
        name: Folder, name on the Hub, or GGUF file (`balora.utils.gguf`).
        setting: The setting that holds the name, for errors.
        settings: Further arguments of `from_pretrained`.

    Raises:
        BALoraError: If it does not load, needs remote code, is an adapter, or has only an unrequested pickle.
    """
    # Transformers would load its base with the adapter, or the base alone.
    if auto.__name__.startswith(("AutoModel", "AutoConfig")) and any(
        (Path(name) / file).is_file() for file in ADAPTERS
    ):
        raise BALoraError(
            f"{setting}: {name!r} is a saved adapter, not a model; merge it into its base first "
            "(PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)), save its "
            "tokenizer there too, and name that folder"
        )
    try:
        with working(f"loading {name}"):
            if not is_gguf(name):
                return auto.from_pretrained(name, trust_remote_code=False, **settings)
            loaded = auto.from_pretrained(dense_folder(name), trust_remote_code=False, **settings)
            rename(loaded[0] if isinstance(loaded, tuple) else loaded, name)  # a tuple has the loading info too
            return loaded
    except Exception as error:  # a damaged configuration can raise any error, and tokenizers raise bare exceptions
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            reason = "it needs remote code, which is never run; use a model that Transformers implements"
        elif settings.get("use_safetensors") and any((Path(name) / file).is_file() for file in PICKLES):
            reason = (
                f"it has no safetensors, and {PICKLES[0]} is a pickle; save it with safetensors, or set "
                "use_safetensors: false to read only tensors from it"
            )
        raise BALoraError(f"{setting}: {name!r} does not load with {auto.__name__}: {reason}") from error


def drop_unsavable_generation_settings(model: PreTrainedModel) -> None:
    """Reset the generation settings that Transformers would refuse to save, with a warning.

    Such settings, as a `temperature` without `do_sample`, have no effect, and raise an error when a model is saved.
    """
    settings = model.generation_config if model.can_generate() else None
    if settings is None:
        return
    try:
        settings.validate(strict=True)
    except ValueError as error:
        names = re.findall(r"^- `(\w+)`", str(error), re.MULTILINE)
        warnings.warn(
            f"balora: the generation settings of {model.name_or_path} contradict each other, and Transformers would "
            f"not save them; {', '.join(names) or 'all but the special tokens'} are reset"
        )
        for name in names:
            setattr(settings, name, getattr(GenerationConfig(), name))
        if not names:
            tokens = {name: value for name, value in settings.to_dict().items() if name.endswith("_token_id")}
            model.generation_config = GenerationConfig(**tokens)


def rename(loaded: Any, name: str) -> None:
    """Set the name under which a loaded model, configuration or tokenizer can be loaded again."""
    for named in (loaded, getattr(loaded, "config", None)):
        if hasattr(named, "name_or_path"):
            named.name_or_path = name


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with the next one after a colon; its type if it has no message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].rstrip().endswith(":") else lines[0])[:500]
