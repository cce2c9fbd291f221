"""Models and tokenizers of others, loaded as data: none of their code is run, and no pickle is read unasked.

Transformers would ask on the terminal whether to run a folder's code, and read `pytorch_model.bin` unasked.
"""

from pathlib import Path
from typing import Any

from balora.errors import BALoraError

#: What Transformers reads where `use_safetensors` is false.
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
#: What building from a configuration, and filling from tensors, raises where these are not what they say.
MISFITS = (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError)


def load(auto: Any, name: str, setting: str, **settings: Any) -> Any:
    """`from_pretrained` of a model, a configuration or a tokenizer, whose errors name the setting in one line.

    Args:
        auto: One of Transformers' automatic classes.
        name: Folder, or name on the Hub.
        setting: What the name was given as.
        settings: Further arguments.

    Raises:
        BALoraError: If it does not load, or would only with its own code, or from a pickle that was not asked for.
    """
    try:
        return auto.from_pretrained(name, trust_remote_code=False, **settings)
    except Exception as error:  # a damaged configuration leads to any error, and tokenizers raise bare exceptions
        said = first_line(error)
        if "trust_remote_code" in str(error):
            said = "it needs code of its own, which is never run; use a model that Transformers has itself"
        elif settings.get("use_safetensors") and any((Path(name) / file).is_file() for file in PICKLES):
            said = (
                f"it has no safetensors, and {PICKLES[0]} is a pickle; save it with safetensors, or set "
                "use_safetensors: false to have tensors alone read from it"
            )
        raise BALoraError(f"{setting}: {name!r} does not load with {auto.__name__}: {said}") from error


def first_line(error: Exception) -> str:
    """What an error says in its first line, the kind of error where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
