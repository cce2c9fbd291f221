"""Number types with bounds for settings, and the validation that reads them off the type hints.

A setting declares its bounds in its type, `r: Count = 16`, as it declares its choices by `Literal`. `validate_types`
checks both for every field, so neither a list of names nor a chain of comparisons repeats them.
"""

import math
import re
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from balora.errors import BALoraError


@dataclass(frozen=True)
class Range:
    """Bounds of a number.

    Attributes:
        least: Smallest value, included.
        most: Largest value, included.
        above: Lower bound, excluded.
        below: Upper bound, excluded.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __repr__(self) -> str:
        if self.most is None and self.below is None:
            return f"at least {self.least}" if self.above is None else f"a value above {self.above}"
        low = f"[{self.least}" if self.above is None else f"({self.above}"
        high = f"{self.most}]" if self.below is None else f"{self.below})"
        return f"a value in {low}, {high}"


#: A NUL, which ends a path, and half of a surrogate pair, which YAML can spell and UTF-8 cannot.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
#: A whole number from 1.
Count = Annotated[int, Range(least=1)]
#: λ of a regularizer; 0 is off.
Weight = Annotated[float, Range(least=0)]
#: A share of something that must not be empty.
Share = Annotated[float, Range(above=0, most=1)]
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
#: A seed that Python, NumPy and PyTorch take.
Seed = Annotated[int, Range(least=0, below=2**32)]


def validate_types(settings: Any) -> None:
    """Validate every field of a dataclass against the choices and bounds in its type.

    Args:
        settings: A dataclass instance. Choices (`Literal`) and bounds (`Annotated[…, Range]`) are checked, inside
            lists too; any float must be finite, and any text one that can be written.

    Raises:
        BALoraError: Naming the field, its value, and what it may be.
    """
    hints = _hints(type(settings))
    for name in (field.name for field in fields(settings) if field.name in hints):
        value = getattr(settings, name)
        items = value if isinstance(value, list | tuple) else [value]
        choices, bounds = _choices_and_bounds(hints[name])
        for item in items:
            if isinstance(item, str) and UNWRITABLE.search(item):
                raise BALoraError(f"{name}: {item[:40]!r} holds a character that no file can hold; leave it out")
            if isinstance(item, float) and not math.isfinite(item):
                raise BALoraError(f"{name}: {item} is not a finite number")
            if choices and item not in choices and (item is not None or not _takes_none(hints[name])):
                raise BALoraError(f"{name}: unknown {item!r}; use {_listed(choices)}")
            if bounds is not None and isinstance(item, int | float) and item not in bounds:
                raise BALoraError(f"{name}: {item} is out of range; use {bounds}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Type hints of a class's fields, without those inherited from PEFT's configuration, which PEFT checks."""
    inherited = {name for base in cls.__mro__ if base.__module__.startswith("peft.") for name in base.__annotations__}
    hints = get_type_hints(cls, include_extras=True)
    return {name: hint for name, hint in hints.items() if name not in inherited}


def _choices_and_bounds(hint: Any) -> tuple[tuple[Any, ...], Range | None]:
    """The choices and the bounds that a type hint declares, at any depth."""
    if get_origin(hint) is Literal:
        return get_args(hint), None
    if get_origin(hint) is dict:
        return (), None
    bounds = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range)), None)
    choices: tuple[Any, ...] = ()
    for inner in get_args(hint):
        found, inner_bounds = _choices_and_bounds(inner)
        choices, bounds = choices + found, bounds or inner_bounds
    return choices, bounds


def _takes_none(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _listed(choices: tuple[Any, ...]) -> str:
    named = [str(choice) for choice in choices]
    return " or ".join(filter(None, [", ".join(named[:-1]), named[-1]]))
