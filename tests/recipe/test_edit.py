"""Settings written into a recipe: it parses to the old mapping plus the settings, and every other character stays."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.recipe.edit import HEADING, with_settings

KEYS = ["a", "beta", "consistency_weight", "k 4", "yes", "12", "ключ", "x: y", "#1"]
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2100, exclude_categories=["Cc", "Cs"]), max_size=12)
VALUES = st.integers() | st.floats(allow_nan=False) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
#: What stands behind a key and its colon, and whether it can be replaced.
WRITTEN = st.one_of(
    st.tuples(st.sampled_from(["", " 0.1", " 1.0e-05", " text, with words", " 'it''s'", ' "a\\n#b"']), st.just(True)),
    st.tuples(st.sampled_from([" [1, two]", " {}", " !!str 5", "\n  0.5"]), st.just(True)),
    st.tuples(st.sampled_from(["\n  deep: {a: 1}  # inside\n\n  a: 2", "\n- 1\n- a: 2", "\n  b: 1"]), st.just(False)),
    st.tuples(st.sampled_from([" |\n  a: 1\n\n  # text", " >-\n  folded\n  text", " 'two\n  lines'"]), st.just(False)),
)
COMMENTS = st.sampled_from(["", "", "  # a: 0.3", " #"])


@st.composite
def recipes(draw):
    """Text, and by key what stands on its first line before and behind the value (`None` where it has several)."""
    newline = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    lines, replaceable = [], {}
    if draw(st.booleans()):
        lines += ["# A recipe", "---"]
    for key in draw(st.lists(st.sampled_from(KEYS), unique=True, min_size=1, max_size=5)):
        lines += draw(st.lists(st.sampled_from(["", "# a: 5", "   # indented: comment"]), max_size=2))
        quoted = yaml.safe_dump([key], default_flow_style=True, allow_unicode=True).strip()[1:-1]
        value, replaceable[key] = draw(WRITTEN)
        comment = draw(COMMENTS) if replaceable[key] else ""
        lines += f"{quoted}:{value}{comment}".split("\n")
    lines += draw(st.sampled_from([[], [], ["# the end"], [""], ["..."]]))
    return newline.join(lines) + draw(st.sampled_from([newline, ""])), replaceable


@settings(max_examples=150, deadline=None)
@given(recipe=recipes(), values=st.dictionaries(st.sampled_from(KEYS), VALUES, min_size=1, max_size=4))
@example(recipe=("a: 1", {"a": True}), values={"beta": 1e-5})
@example(recipe=("a: 1\n", {"a": True}), values={"a": "two\nlines", "beta": "\x85"})
@example(recipe=("beta:", {"beta": True}), values={"a": 0, "beta": 0})
@example(recipe=("a: |\n  text", {"a": False}), values={"beta": 1})  # the newline it lacks is part of its value
def test_a_recipe_parses_to_the_old_mapping_plus_the_settings(recipe, values):
    text, replaceable = recipe
    old = yaml.safe_load(text)
    if any(not replaceable.get(key, True) for key in values):
        with pytest.raises(BALoraError, match="is not on one line"):
            with_settings(text, values)
        return
    try:
        edited = with_settings(text, values)
    except BALoraError:
        assert text.endswith(("# text", "text"))  # only a block of text at the very end may be in the way
        return
    assert yaml.safe_load(edited) == old | values
    assert list(yaml.safe_load(edited)) == list(old | values)
    # Each line is as it was, in its order, but where a value was replaced; and there its comment is.
    before, after = text.splitlines(keepends=True), edited.splitlines(keepends=True)
    changed = [n for n, (x, y) in enumerate(zip(before, after, strict=False)) if x.rstrip("\r\n") != y.rstrip("\r\n")]
    new = [key for key in values if key not in old]
    if not text.rstrip().endswith("..."):
        assert len(changed) <= len(values) - len(new)
        for n in changed:
            for comment in ("# a: 0.3", " #"):
                assert not before[n].rstrip("\r\n").endswith(comment) or after[n].rstrip("\r\n").endswith(comment)
        assert len(after) == len(before) + (len(new) + 2 if new else 0)
    assert edited.count("\r\n") == (edited.count("\n") if "\r\n" in text else 0)
    assert edited.count(HEADING) == bool(new)
    assert with_settings(edited, values) == edited


@settings(max_examples=150, deadline=None)
@given(text=st.text("ab:-&*#|>'\"{}[]!?, \n\r\t.1~", max_size=25), values=st.dictionaries(st.just("a"), VALUES))
@example(text="a: &x 1\nb: *x", values={"a": 2})
@example(text="b: &x 1\na: *x", values={"a": 2})
@example(text="a: 1\na: 2", values={"a": 3})
@example(text="b: &m {a: 1}\n<<: *m", values={"a": 2})
@example(text="? a\n: 1\n", values={"a": 2})
@example(text="--- !!map\nb: 1\n...\n# after", values={"a": 2})
@example(text="b: |+\n  kept\n\n", values={"a": 2})
@example(text="a: 1\n---\na: 2\n", values={"a": 2})
def test_any_text_is_edited_rightly_or_refused(text, values):
    try:
        edited = with_settings(text, values)
    except BALoraError:
        return
    assert yaml.safe_load(edited) == yaml.safe_load(text) | values


def test_a_recipe_as_people_write_it():
    text = """\
# Mine.

name: support answers   # as in the table

consistency_weight: 0.25 # ten times the published
spectral_weight:    # as published
world: {}
methods:
- lora
- ba-lora
"""
    edited = with_settings(text, {"spectral_weight": 2e-6, "diversity_weight": 0.031, "consistency_weight": 1})
    assert (
        edited
        == """\
# Mine.

name: support answers   # as in the table

consistency_weight: 1 # ten times the published
spectral_weight: 2.0e-06    # as published
world: {}
methods:
- lora
- ba-lora

# Set by `balora calibrate`.
diversity_weight: 0.031
"""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no mapping"),
        ("# only a comment\n", "no mapping"),
        ("- a\n", "no mapping"),
        ("{a: 1}\n", "in braces"),
        ("a: [1\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("a:\n  b: 1", r"value of a \(line 1\) is not on one line"),
        ("# c\na: >\n  1\n", r"value of a \(line 2\) is not on one line"),
        ("a: &x 1\nb: *x\n", "a cannot be written"),
    ],
)
def test_what_cannot_be_edited_is_refused_with_its_reason(text, message):
    with pytest.raises(BALoraError, match=message):
        with_settings(text, {"a": 2})
