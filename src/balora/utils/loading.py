"""Safe loading of pretrained models and tokenizers: no remote code runs, and pickles are read only on request.

Transformers by default asks on the terminal whether to run a folder's code, and reads `pytorch_model.bin`.
"""

from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.utils.progress import working

#: Pickle files that Transformers reads if `use_safetensors` is false.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
#: Errors that a model built from a damaged configuration, or filled with wrong tensors, may raise.
LOAD_ERRORS = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)


def load(auto: Any, name: str, setting: str, **settings: Any) -> Any:
    """Load a model, configuration or tokenizer; errors name the setting in one line.

    Args:
        auto: One of Transformers' Auto classes.
        name: Folder, or name on the Hub.
        setting: The setting that holds the name, for errors.
        settings: Further arguments of `from_pretrained`.

    Raises:
        BALoraError: If it does not load, needs remote code, or has a pickle only and none was requested.
    """
    try:
        with working(f"loading {name}"):
            return auto.from_pretrained(name, trust_remote_code=False, **settings)
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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, with the next one after a colon; its type if it has no message."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].rstrip().endswith(":") else lines[0])[:500]
