"""What a recipe may write in a path: `${NAME}`, `${NAME:-default}`, `~` and `package:NAME/folder`.

Recipes are shared between machines; these three are what differs between them.
"""

import importlib.util
import os
import re
from pathlib import Path

from balora.errors import BALoraError

VARIABLE = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\}", re.ASCII)
PACKAGE = re.compile(r"package:(?P<name>[A-Za-z_]\w*)(?:/(?P<folder>.*))?", re.ASCII | re.DOTALL)


def expand_path(text: str) -> str:
    """Replace variables of the environment, `~` and `package:` in a path of a recipe.

    `${NAME:-default}` takes the default where NAME is unset or empty, as in a shell. `package:NAME/folder` is a
    file or folder inside an installed Python package, which is found without being imported. Other text comes back as
    it is, so names on the Hub may pass through.

    Raises:
        BALoraError: If a variable without default is unset, a `${` is malformed, or a package or what is asked of it
            is not there.
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
    # Not `importlib.resources.files`: that imports the package, and with it all that the package itself imports.
    spec = importlib.util.find_spec(match["name"])
    if spec is None or spec.submodule_search_locations is None:
        raise BALoraError(f"{text}: no Python package {match['name']!r} is installed here")
    for root in spec.submodule_search_locations:
        path = Path(root, match["folder"] or "")
        if path.exists():
            return path
    raise BALoraError(f"{text}: the package {match['name']!r} holds no {match['folder']!r}")
