"""Bad recipes, in bytes, structure or values: one clear error that names the file or the setting."""

import os
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import get_args, get_type_hints

import pytest
import yaml
from bad_inputs import ODD, PIECES, complaint, encoded, hold, mutated, mutated_bytes, sized
from hypothesis import strategies as st
from right_recipes import NAMES, RECIPES, WORKS, planned

from balora.audit.settings import AuditSettings, parse_audit
from balora.data import load_table
from balora.errors import BALoraError
from balora.recipe import Recipe
from balora.recipe.parse import parse, read_recipe
from balora.study.output_dir import claimed
from balora.study.plan import plan


def not_null(schema: type) -> list[str]:
    return [name for name, kind in get_type_hints(schema).items() if NoneType not in get_args(kind)]


@st.composite
def recipes(draw: st.DrawFn) -> bytes:
    """Draw a valid recipe with changed values, odd values or changed bytes."""
    recipe = mutated(draw(st.sampled_from(RECIPES)), draw, most=2)
    if isinstance(recipe, dict):
        for _ in range(draw(st.integers(0, 2))):
            recipe[draw(st.sampled_from(NAMES))] = draw(
                st.sampled_from([*ODD, ["lora"], {"r": 2}, {"lora": {}}, [0.5]])
            )
    text = yaml.dump(recipe, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.sampled_from([None, True])))
    content = encoded(text, draw)
    return mutated_bytes(content, draw) if draw(st.booleans()) else content


@pytest.mark.parametrize("name", not_null(Recipe))
def test_an_empty_key_of_a_recipe_keeps_its_default(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WORKS))
    plain, _ = parse("compare", [str(path)])
    path.write_text(yaml.safe_dump({**WORKS, name: None}))
    assert parse("compare", [str(path)])[0] == plain


@pytest.mark.parametrize("name", not_null(AuditSettings))
def test_an_empty_key_of_an_audit_file_keeps_its_default(name, tmp_path):
    path = tmp_path / "audit.yaml"
    path.write_text(yaml.safe_dump({name: None}))
    assert parse_audit(["m", f"--config={path}"]) == parse_audit(["m"])


def test_null_keeps_the_recipe_s_setting_in_a_method_and_is_refused_in_a_sweep(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**WORKS, "r": 4, "method_settings": {"lora": {"r": None, "max_steps": 3}}}))
    assert parse("compare", [str(path)])[0].method_settings == {"lora": {"max_steps": 3}}
    path.write_text(yaml.safe_dump({**WORKS, "sweep": {"r": [2, None]}}))
    with pytest.raises(BALoraError, match=r"sweep: r: null is not a value of it"):
        parse("sweep", [str(path)])


@sized(few=40, share=0.06)
def test_a_changed_recipe_is_planned_or_refused(count, tmp_path):
    path = tmp_path / "recipe.yaml"

    def check(content: bytes) -> str:
        path.write_bytes(content)
        said = complaint(lambda: planned(path), path, *NAMES, "Recipe", "recipe", "settings")
        if said is None:
            return "planned"
        return "refused by value" if complaint(lambda: read_recipe(path), path) is None else "refused as a file"

    tally = hold(count, recipes(), check)
    assert tally["planned"] > 0
    assert tally["refused by value"] > 0


@sized(few=150, share=0.14)
def test_a_changed_settings_file_is_read_or_refused(count, tmp_path):
    path = tmp_path / "recipe.yaml"

    def check(content: bytes) -> str:
        path.write_bytes(content)
        said = complaint(lambda: read_recipe(path), path)
        return "read" if said is None else "refused"

    tally = hold(count, recipes(), check)
    assert tally["read"] > 0.1 * tally.total()


@sized(few=30, share=0.02)
def test_changed_command_line_arguments_are_read_or_refused(count, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WORKS))
    audit = ["own_texts", "data_file", "bbq", "label_names", "max_samples", "dtype", "seed", "words"]

    @st.composite
    def arguments(draw: st.DrawFn) -> tuple[str, list[str]]:
        command = draw(st.sampled_from(["train", "audit"]))
        values = st.sampled_from([str(odd) for odd in ODD] + [piece.decode(errors="replace") for piece in PIECES[:30]])
        named = [f"--{draw(st.sampled_from(NAMES if command == 'train' else audit))}={draw(values)}" for _ in range(2)]
        return command, [
            *named[: draw(st.integers(1, 2))],
            *draw(st.sampled_from([[], [], ["--"], ["--nothing"], ["x"]])),
        ]

    def check(given: tuple[str, list[str]]) -> str:
        command, further = given
        read = (
            (lambda: parse("train", [str(path), *further]))
            if command == "train"
            else lambda: parse_audit(["m", *further])
        )
        return "read" if complaint(read, *NAMES, *audit, "arguments", "x", "settings") is None else "refused"

    tally = hold(count, arguments(), check)
    assert 0 < tally["read"] < tally.total()


SELF_REFERENCES = {
    "a mapping in itself": "training_arguments: &x {a: *x}",
    "a list in itself": "quantization_config: {a: &x [*x]}",
    "tasks in themselves": "tasks: &x {a: *x}",
    "methods in themselves": "method_settings: &x {lora: *x}",
    "a deep hole": "name: " + "[" * 20_000,
}


@pytest.mark.parametrize("kind", SELF_REFERENCES)
def test_a_recipe_that_contains_itself_is_refused(kind, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(WORKS) + SELF_REFERENCES[kind])
    key = SELF_REFERENCES[kind].partition(":")[0]
    assert complaint(lambda: parse("train", [str(path)]), path, key, "settings", "recursion")


def test_a_finite_alias_is_read(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("tasks:\n  one: &one {model_name_or_path: m, train_file: a.jsonl}\n  two: {<<: *one, r: 3}\n")
    recipe, _ = parse("train", [str(path)])
    assert recipe.tasks["two"] == {**WORKS, "r": 3}


def test_a_recipe_cannot_include_a_file(tmp_path):
    """Neither a key, a tag nor a path as a value includes another file."""
    other = tmp_path / "other.yaml"
    other.write_text("{a: 1}")
    for text in ("recipe: recipe.yaml", f"include: {other}", f"training_arguments: !include {other}", "config: x"):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(WORKS) + text)
        assert complaint(lambda path=path: parse("train", [str(path)]), path)


@pytest.mark.parametrize(
    "key", [f.name for f in fields(Recipe) if f.default is not MISSING or f.default_factory is not MISSING]
)
def test_a_mistyped_key_gets_the_nearest_key_suggested(key, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**WORKS, f"{key}_": 1}))
    assert f"did you mean {key!r}?" in complaint(lambda: read_recipe(path), path)


@pytest.mark.parametrize(
    "settings",
    [
        {"tasks": {"..": WORKS}},
        {"tasks": {".": WORKS}},
        {"tasks": {"": WORKS}},
        {"tasks": {"a/../../b": WORKS}},
        {"tasks": {"/tmp/x": WORKS}},
        {"tasks": {"x" * 300: WORKS}},
        {"tasks": {1: WORKS}},
        {"methods": ["../lora"], "method_settings": {"../lora": {"method": "lora"}}},
        {"methods": ["/tmp/lora"], "method_settings": {"/tmp/lora": {"method": "lora"}}},
        {"methods": [".."], "method_settings": {"..": {"method": "lora"}}},
        {"methods": ["pretrained"], "method_settings": {"pretrained": {"method": "lora"}}},
        {"sweep": {"text_column": ["../../../x", "/y"]}},
        {"name": "a\0b"},
    ],
)
def test_names_that_would_leave_the_output_folder_are_refused(settings, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**WORKS, **settings}))

    def planned() -> None:
        plan(parse("compare", [str(path)])[0])

    assert complaint(planned, *settings, "methods", path)


def test_every_run_folder_is_inside_the_study_s_folder(tmp_path):
    for recipe in RECIPES:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**recipe, "output_dir": str(tmp_path / "out")}))
        for cell in plan(parse("compare", [str(path)])[0]):
            folder = Path(os.path.normpath(tmp_path / "out" / cell.folder))
            assert (tmp_path / "out" / "runs") in folder.parents


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", -1), ("seeds", [2**40]), ("subset_seed", -3), ("num_train_epochs", float("nan")),
        ("num_train_epochs", 0), ("learning_rate", float("inf")), ("lora_dropout", 1.5),
        ("max_train_samples", 0), ("max_eval_samples", -1),
        ("per_device_eval_batch_size", 0), ("weight_decay", -0.1), ("lora_alpha", 0),
        ("validation_share", float("nan")),
    ],
)  # fmt: skip
def test_an_impossible_number_is_named(key, value, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**WORKS, key: value}))
    assert complaint(lambda: parse("train", [str(path)]), key).startswith(f"{key}: ")


@sized(few=40, share=0.06)
def test_a_folder_with_a_changed_recipe_record_is_refused_and_left_unchanged(count, tmp_path):
    recipe = Recipe(**WORKS, output_dir=str(tmp_path / "out"))
    record = tmp_path / "out" / "recipe.yaml"
    record.parent.mkdir()
    right = recipe.to_yaml().encode()

    @st.composite
    def records(draw: st.DrawFn) -> bytes:
        return mutated_bytes(right, draw, most=4) if draw(st.booleans()) else draw(recipes())

    def go_on() -> None:
        with claimed(recipe):
            pass

    def check(content: bytes) -> str:
        record.write_bytes(content)
        said = complaint(go_on, record.parent)
        if said is None:
            return "gone on with"
        assert record.read_bytes() == content
        return "refused"

    tally = hold(count, records(), check)
    assert 0 < tally["gone on with"] < tally.total()


def test_a_recipe_record_with_a_number_as_key_is_another_run(tmp_path):
    recipe = Recipe(**WORKS, output_dir=str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text(recipe.to_yaml() + "2: 3\n")
    with pytest.raises(BALoraError, match=r"differs in 2 \(3 there, None now\)"), claimed(recipe):
        pass


def test_a_table_may_lie_anywhere_and_is_only_read(tmp_path):
    """A recipe may name a path outside its folder; a file that is read is never written."""
    (tmp_path / "in").mkdir()
    outside = tmp_path / "a.jsonl"
    outside.write_text('{"text": "a"}\n')
    before = outside.stat()
    load_table(str(tmp_path / "in" / ".." / "a.jsonl"))
    assert outside.stat().st_mtime_ns == before.st_mtime_ns
