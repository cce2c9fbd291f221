"""Settings written into a recipe's text, everything else of it left as it stands: comments, order, line ends.

A YAML library would write the file anew. Instead the parser's marks say where a value stands in the text, only that is
replaced, and the outcome is parsed again: an edit that would change anything else is refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from balora.errors import BALoraError

#: Above settings that the recipe did not have.
HEADING = "# Set by `balora calibrate`."


def with_settings(text: str, settings: Mapping[str, float | int | str]) -> str:
    """A recipe's text with these top-level settings in it.

    The value of a key that is there is replaced in its place, and a comment behind it stays; other keys follow at the
    end, below a comment.

    Args:
        text: YAML, a mapping of settings with one on a line.
        settings: Values by key.

    Returns:
        Text that parses to the old mapping plus the settings.

    Raises:
        BALoraError: If the text is no such mapping, a value to be replaced does not stand on one line, or the edit
            would change another setting (an anchor that others refer to).
    """
    root, old, end = _parse(text)
    places = {key.value: (key, value) for key, value in root.value if key.tag == "tag:yaml.org,2002:str"}
    edited = text
    new = {key: value for key, value in settings.items() if key not in places}
    if new:
        newline = "\r\n" if "\r\n" in text else "\n"
        indent = " " * root.value[0][0].start_mark.column
        lines = [HEADING, *(f"{_scalar(key)}: {_scalar(value)}" for key, value in new.items())]
        before = newline if text[:end].endswith("\n") else 2 * newline
        edited = text[:end] + before + "".join(indent + line + newline for line in lines) + text[end:]
    # From the last to the first, so that what is yet to be replaced stands where the parser saw it.
    for (start, stop), key in sorted(((_span(*places[key]), key) for key in settings.keys() - new), reverse=True):
        # A key without a value has its mark right behind the colon.
        edited = edited[:start] + " " * (start == stop) + _scalar(settings[key]) + edited[stop:]
    try:
        kept = yaml.safe_load(edited) == old | dict(settings)
    except (yaml.YAMLError, ValueError):
        kept = False
    if not kept:
        names = ", ".join(settings)
        raise BALoraError(f"recipe: {names} cannot be written into it without changing more; write by hand")
    return edited


def _parse(text: str) -> tuple[yaml.MappingNode, dict[Any, Any], int]:
    """The root node, the mapping, and where in the text the document ends."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        old = yaml.safe_load(text)
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        end = next(event for event in events if isinstance(event, yaml.DocumentEndEvent)) if root else None
    except (yaml.YAMLError, ValueError) as error:
        raise BALoraError(f"recipe: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode) or not isinstance(old, dict):
        raise BALoraError("recipe: it is no mapping of settings, such as `learning_rate: 0.001`")
    if root.flow_style:
        raise BALoraError("recipe: its settings stand in braces; write one `key: value` on a line")
    return root, old, end.start_mark.index if end.explicit else len(text)


def _span(key: yaml.Node, value: yaml.Node) -> tuple[int, int]:
    """Where the value stands in the text."""
    start, stop = value.start_mark, value.end_mark
    block = value.style in ("|", ">") if isinstance(value, yaml.ScalarNode) else not value.flow_style
    if block or start.line != stop.line:
        raise BALoraError(f"recipe: the value of {key.value} (line {key.start_mark.line + 1}) is not on one line")
    return start.index, stop.index


def _scalar(value: float | int | str) -> str:
    """The value in one line of YAML."""
    # As the element of a list in brackets: without the document markers that a lone scalar gets.
    style = {"default_flow_style": True, "width": math.inf, "allow_unicode": True}
    line = yaml.safe_dump([value], **style)
    if len(line.splitlines()) > 1:
        line = yaml.safe_dump([value], default_style='"', **style)
    return line.strip()[1:-1]
