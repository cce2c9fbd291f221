"""Settings that are paths."""

from typing import Annotated, get_args

#: A folder or file, with `~`, `${NAME:-default}`, `package:NAME/…` or `world:NAME` expanded before it is read.
RecipePath = Annotated[str, "path"]


def is_path(hint: object) -> bool:
    """Return whether a type hint is `RecipePath`, or that or null."""
    return hint == RecipePath or any(inner == RecipePath for inner in get_args(hint))
