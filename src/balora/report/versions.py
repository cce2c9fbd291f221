"""What a study ran with: a figure without its versions cannot be repeated."""

import platform
from importlib.metadata import version

PACKAGES = ("balora", "torch", "transformers", "peft")


def versions() -> dict[str, str]:
    """Version of Python and of each package that decides a result."""
    return {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
