"""Safe loading of pretrained models and tokenizers: no remote code runs, and pickles are read only on request.

Transformers by default asks on the terminal whether to run a folder's code, and reads `pytorch_model.bin`.
"""

from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.utils.gguf import dense_folder, is_gguf
from balora.utils.progress import working

#: Pickle files that Transformers reads if `use_safetensors` is false.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
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
        BALoraError: If it does not load, needs remote code, or has a pickle only and none was requested.
    """
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


def rename(loaded: Any, name: str) -> None:
    """Set the name under which a loaded model, configuration or tokenizer can be loaded again."""
    for named in (loaded, getattr(loaded, "config", None)):
        if hasattr(named, "name_or_path"):
            named.name_or_path = name


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type's name if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
