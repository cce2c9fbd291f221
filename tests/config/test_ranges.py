"""Choices and bounds that settings declare in their types."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

import pytest

from balora.config.ranges import Count, Positive, Range, Share, Weight, validate_types
from balora.errors import BALoraError


@dataclass
class Settings:
    count: Count = 1
    limit: Count | None = None
    share: Share = 1.0
    rate: Annotated[float, Range(least=0, below=1)] = 0.0
    positive: Positive = 1.0
    weight: Weight | None = None
    kind: Literal["a", "b"] | None = None
    levels: list[Share] = field(default_factory=lambda: [0.5])
    free: float = 0.0
    text: str = ""
    switch: bool = True
    inner: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    "right",
    [
        {},
        {"count": 1, "limit": 7, "share": 1.0, "rate": 0.0, "positive": 1e-9, "weight": 0.0, "kind": "b"},
        {"levels": [0.1, 1.0], "free": -1e9, "inner": {"x": -1.0}},
    ],
)
def test_values_in_range_pass(right):
    validate_types(Settings(**right))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 0}, r"^count: 0 is out of range; use at least 1$"),
        ({"limit": 0}, r"^limit: 0 is out of range; use at least 1$"),
        ({"share": 0.0}, r"^share: 0.0 is out of range; use a value in \(0, 1\]$"),
        ({"share": 1.1}, r"^share: 1.1 is out of range"),
        ({"rate": 1.0}, r"^rate: 1.0 is out of range; use a value in \[0, 1\)$"),
        ({"positive": 0}, r"^positive: 0 is out of range; use a value above 0$"),
        ({"weight": -0.1}, r"^weight: -0.1 is out of range; use at least 0$"),
        ({"kind": "c"}, r"^kind: unknown 'c'; use a or b$"),
        ({"levels": [0.5, 2.0]}, r"^levels: 2.0 is out of range"),
        ({"text": "a\0b"}, r"^text: 'a\\x00b' holds a character"),
        ({"text": "\ud800"}, r"^text: .* holds a character that no file can hold"),
        ({"free": float("nan")}, r"^free: nan is not a finite number$"),
        ({"weight": float("inf")}, r"^weight: inf is not a finite number$"),
    ],
)
def test_values_out_of_range_are_named(wrong, message):
    with pytest.raises(BALoraError, match=message):
        validate_types(Settings(**wrong))
