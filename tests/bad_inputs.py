"""Bad inputs made from valid ones; each must work or give one clear error.

`BALORA_INPUTS` says how many there are in all under the marker `reliability` (10,000); `make test` tries few of each.
Files are changed as structures (a value, a key, a row) and as bytes (flipped, cut, doubled, in another encoding), a
little at a time, so that most get past the first check that they meet.
"""

import copy
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.study.terminal import one_line

INPUTS = int(os.environ.get("BALORA_INPUTS", "10000"))
#: Limit on a reader's CPU seconds for one file.
PATIENCE = 20.0
#: Outcomes of each test's inputs.
TALLY: dict[str, Counter] = {}

#: Values of unexpected types and ranges.
ODD = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.0, -0.0, 0.5, 1e308, math.nan, math.inf,
    -math.inf, "", " ", "\t", "\n", "a", "0", "1", "-1", "1.5", "nan", "inf", "null", "true", "{prompt}", "\0",
    "\ufeff", "\u2028", "\x85", "\x1b[31m", "\ud800", "é", "特徴", "..", "../..", "/", "/etc/passwd", "~", "${HOME}",
    "${NO_SUCH}", "package:os", "a/b", "<script>alert(1)</script>", "{{ 7 * 7 }}", "%s%n", "x" * 5000, [], {}, [None],
    [[]], [1, "a"], {"": 0}, {"a": {"b": [1]}}, [[[[[[[[[]]]]]]]]], {"role": "user", "content": "a"},
    [{"role": "user", "content": "a"}],
]  # fmt: skip
#: Bytes to put between others.
PIECES = [
    b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\r", b"\n", b"\r\n", b"\t", b",", b'"',
    b"'", b"{", b"}", b"[", b"]", b":", b"NaN", b"null", b"1e999", b"\\ud800", b"\\", b"-", b"&a ", b"*a", b"<<: ",
    b"!!", b"#", b"{}", b"[" * 3000, b'{"a":' * 2000, b"9" * 5000, b"\x1b]0;x\x07", b"\x85", b"\xe2\x80\xa8", b"--- ",
    b"|", b">", b"? ",
]  # fmt: skip


def sized(few: int, share: float) -> Callable:
    """Parametrize a test with `few` inputs by default and its share of `INPUTS` under the marker `reliability`."""
    many = pytest.param(math.ceil(INPUTS * share), id="many", marks=pytest.mark.reliability)
    return pytest.mark.parametrize("count", [pytest.param(few, id="few"), many])


def hold(count: int, strategy: st.SearchStrategy, check: Callable[[Any], str]) -> Counter:
    """Run a check on `count` generated inputs, the same ones every time.

    Returns:
        How often the check returned each outcome.
    """
    name = os.environ["PYTEST_CURRENT_TEST"].split(" ")[0].split("/")[-1]
    tally = TALLY[name] = Counter()

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def every(given_input: Any) -> None:
        start = time.process_time()
        tally[check(given_input)] += 1
        assert time.process_time() - start < PATIENCE

    every()
    assert tally.total() >= count
    return tally


def complaint(action: Callable[[], object], *names: object) -> str | None:
    """Return the `BALoraError` of an action as one line, `None` where it works; other errors fail the test.

    Args:
        action: Reads the input.
        names: A file or fields; the error must name one of them.
    """
    try:
        action()
    except BALoraError as error:
        said = one_line(error)
        assert said
        assert said.isprintable()
        assert len(said) < 3000, f"{len(said)} characters: {said[:300]}"
        assert any(one_line(name) in said for name in names), f"{said!r} names none of {names}"
        return said
    return None


def mutated(value: Any, draw: st.DrawFn, most: int = 3) -> Any:
    """Return a copy with up to `most` of its parts changed, dropped, doubled, renamed or swapped."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(0, most))):
        places = list(_places(value))
        if not places:
            return draw(st.sampled_from(ODD))
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["odd", "odd", "drop", "double", "rename", "wrap", "swap"])):
            case "odd":
                holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
            case "drop":
                del holder[key]
            case "double" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
            case "rename" if isinstance(holder, dict):
                holder[draw(st.sampled_from(["", "a", "id", "text", "label", f"{key}s", "\0", "é", "x" * 300]))] = (
                    holder.pop(key)
                )
            case "wrap":
                holder[key] = draw(st.sampled_from([[holder[key]], {"a": holder[key]}, str(holder[key])]))
            case _:
                other, place = draw(st.sampled_from(places))
                if place in other if isinstance(other, dict) else place < len(other):
                    holder[key] = copy.deepcopy(other[place])
    return value


def _places(value: Any) -> Any:
    """Yield the container and key of every part of a structure."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield value, key
        yield from _places(inner)


def mutated_bytes(content: bytes, draw: st.DrawFn, most: int = 3) -> bytes:
    """Return the bytes with up to `most` places changed."""
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([1, 1, 2, 7, 40]))
        match draw(st.sampled_from(["flip", "insert", "delete", "double", "cut"])):
            case "flip" if at < len(content):
                flipped = content[at] ^ (1 << draw(st.integers(0, 7)))
                content = content[:at] + bytes([flipped]) + content[at + 1 :]
            case "insert":
                content = content[:at] + draw(st.sampled_from(PIECES)) + content[at:]
            case "delete":
                content = content[:at] + content[at + length :]
            case "double":
                content = content[: at + length] + content[at:]
            case "cut":
                content = content[:at]
    return content


def encoded(text: str, draw: st.DrawFn) -> bytes:
    """Encode text, mostly as UTF-8."""
    encoding = draw(
        st.sampled_from(["utf-8"] * 9 + ["utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "shift-jis"])
    )
    return text.encode(encoding, errors="surrogatepass" if encoding.startswith("utf") else "replace")
