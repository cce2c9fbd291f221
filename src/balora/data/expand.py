"""Expand `${NAME}`, `${NAME:-default}`, `~` and `package:NAME/folder` in the paths of a recipe.

This way recipes can be shared between machines.
"""

import importlib.util
import os
import re
from pathlib import Path

from balora.errors import BALoraError

VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", re.ASCII)
PACKAGE = re.compile(r"package:(?P<name>[A-Za-z_]\w*)(?:/(?P<folder>.*))?", re.ASCII | re.DOTALL)


def expand_path(text: str) -> str:
    """Expand environment variables, `~` and `package:` in a path.

    `${NAME:-default}` is the default if NAME is unset or empty, as in a shell. `package:NAME/folder` is a file or
    folder inside an installed Python package, which is found without importing it. Other text, such as a name on the
    Hub, is returned as it is.

    Raises:
        BALoraError: If a variable without default is unset, a `${` is malformed, or a package, or the file or folder
            in it, does not exist.
    """
    text = VARIABLE.sub(_value, text)
    if "${" in text:
        raise BALoraError(f"{text}: cannot read what follows '${{'; write ${{NAME}} or ${{NAME:-default}}")
    if text.startswith("package:"):
        return str(_in_package(text))
    return os.path.expanduser(text)


def _value(match: re.Match[str]) -> str:
    value, default = os.environ.get(match["name"]), match["default"]
    if default is not None:
        return value or default
    if value is None:
        raise BALoraError(
            f"{match.string}: the environment variable {match['name']} is not set; "
            f"set it, or write ${{{match['name']}:-default}}"
        )
    return value


def _in_package(text: str) -> Path:
    match = PACKAGE.fullmatch(text)
    if match is None:
        raise BALoraError(f"{text}: write package:NAME/folder, with NAME a top-level Python package")
    # `importlib.resources.files` would import the package and everything that it imports.
    spec = importlib.util.find_spec(match["name"])
    if spec is None or spec.submodule_search_locations is None:
        raise BALoraError(f"{text}: no Python package {match['name']!r} is installed here")
    for root in spec.submodule_search_locations:
        path = Path(root, match["folder"] or "")
        if path.exists():
            return path
    raise BALoraError(f"{text}: the package {match['name']!r} holds no {match['folder']!r}")
